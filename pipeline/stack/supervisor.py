"""Starts services in the order of what they need, watches them, and starts again what dies."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import PipelineError, UserError
from pipeline.stack.state import ProcessPhase, ProcessState

log = logging.getLogger(__name__)

#: How often the supervisor looks at its processes, in seconds.
_TICK = 0.1
#: How often a process that is not ready yet is asked.
_ASK = 0.2
#: Waits before the first, second, … start after a death; the last one repeats.
_BACKOFF = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0)
#: A process that was ready for so long has recovered: its next death counts as the first again.
_STEADY = 30.0
#: How the last line of one of our own processes begins that could not do what it was asked to.
_TOLD = "error: "
#: Lines of a log that are worth showing.
_TAIL_LINES = 15


class StackError(UserError):
    """The stack could not be started."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """One process of the stack: how it starts, when it is ready, and how it ends."""

    name: str
    launch: Callable[[], subprocess.Popen[bytes]]
    #: Asked with the pid; must answer within a second or so.
    is_ready: Callable[[int], bool]
    log_path: Path
    #: Services that must be ready before this one is started.
    after: tuple[str, ...] = ()
    #: How long its first start may take, in seconds.
    ready_seconds: float = 60.0
    #: How often its first start may fail before the stack gives up.
    first_tries: int = 1
    stop_signal: signal.Signals = signal.SIGTERM
    #: How long it may take to end in order, in seconds.
    stop_seconds: float = 10.0
    #: Sent where there is no time to end in order.
    hurry_signal: signal.Signals = signal.SIGKILL


@dataclass
class _Watched:
    service: Service
    process: subprocess.Popen[bytes] | None = None
    phase: ProcessPhase = ProcessPhase.STARTING
    restarts: int = 0
    #: Deaths since it was last steady.
    num_deaths: int = 0
    reason: str | None = None
    launched_at: float = 0.0
    ready_at: float = 0.0
    next_launch: float = 0.0
    next_ask: float = 0.0
    #: Size of the log when it was last started, in bytes.
    log_start: int = 0
    was_ready: bool = field(default=False)

    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def log_tail(self) -> list[str]:
        """The last lines that it wrote since it was last started."""
        try:
            with self.service.log_path.open("rb") as file:
                file.seek(max(self.log_start, file.seek(0, os.SEEK_END) - 8_192))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return []
        return [line for line in lines if line.strip()][-_TAIL_LINES:]


class StopRequests:
    """Counts SIGINT, SIGTERM and SIGHUP instead of dying of them."""

    def __init__(self) -> None:
        self.count = 0
        signal.signal(signal.SIGINT, self._note)
        signal.signal(signal.SIGTERM, self._note)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as `nohup` has it
            signal.signal(signal.SIGHUP, self._note)

    def _note(self, *_: object) -> None:
        self.count += 1

    def __bool__(self) -> bool:
        return self.count > 0


class Supervisor:
    """Runs in the main thread alone: the kernel ends the services when the thread that started them ends."""

    def __init__(self, stop: StopRequests, on_change: Callable[[], None]) -> None:
        self._stop = stop
        self._on_change = on_change
        self._watched: dict[str, _Watched] = {}

    def states(self) -> dict[str, ProcessState]:
        return {
            name: ProcessState(
                pid=watched.process.pid if watched.process is not None and watched.is_alive() else None,
                state=watched.phase,
                restarts=watched.restarts,
                reason=watched.reason,
            )
            for name, watched in self._watched.items()
        }

    def start(self, services: Sequence[Service]) -> None:
        """Start services and wait until all are ready, or somebody asks to stop. Raises StackError if one fails."""
        for service in services:
            self._watched[service.name] = _Watched(service)
        self._on_change()
        waiting = [self._watched[service.name] for service in services]
        while not self._stop and not all(watched.was_ready for watched in waiting):
            self.look()
            for watched in waiting:
                _check_first_start(watched)
            time.sleep(_TICK)

    def run(self) -> None:
        """Watch until somebody asks to stop."""
        while not self._stop:
            self.look()
            time.sleep(_TICK)

    def stop(self, *stages: Sequence[str]) -> None:
        """End everything, stage by stage in the order given; services of one stage end side by side.

        Whoever asks once more meanwhile is in a hurry.
        """
        asked_before = self._stop.count
        for stage in stages:
            self._stop_stage([self._watched[name] for name in stage if name in self._watched], asked_before)

    def look(self) -> None:
        """Look at every process once: start what is due, note what died, ask what is not ready yet."""
        for watched in self._watched.values():
            before = (watched.phase, watched.process, watched.restarts)
            self._look_after(watched, time.monotonic())
            if before != (watched.phase, watched.process, watched.restarts):
                self._on_change()

    def _look_after(self, watched: _Watched, now: float) -> None:
        if watched.process is None:
            needed = [self._watched[name] for name in watched.service.after]
            if now >= watched.next_launch and all(other.phase is ProcessPhase.RUNNING for other in needed):
                _launch(watched, now)
        elif watched.process.poll() is not None:
            _bury(watched, now)
        elif watched.phase is not ProcessPhase.RUNNING and now >= watched.next_ask:
            watched.next_ask = now + _ASK
            if _is_ready(watched.service, watched.process.pid):
                watched.phase, watched.was_ready, watched.reason, watched.ready_at = (
                    ProcessPhase.RUNNING,
                    True,
                    None,
                    now,
                )
                log.info("%s is ready (process %d)", watched.service.name, watched.process.pid)

    def _stop_stage(self, stage: Sequence[_Watched], asked_before: int) -> None:
        hurried: set[str] = set()
        killed: set[str] = set()
        for watched in stage:
            log.info("%s stops", watched.service.name)
            _signal(watched, watched.service.stop_signal)
        started = time.monotonic()
        while alive := [watched for watched in stage if watched.is_alive()]:
            for watched in alive:
                name = watched.service.name
                if self._stop.count > asked_before and name not in hurried:
                    hurried.add(name)
                    _signal(watched, watched.service.hurry_signal)
                if time.monotonic() > started + watched.service.stop_seconds and name not in killed:
                    killed.add(name)
                    log.warning("%s did not end within %g s and is killed", name, watched.service.stop_seconds)
                    _signal(watched, signal.SIGKILL)
            time.sleep(_TICK / 2)
        for watched in stage:
            watched.phase, watched.process = ProcessPhase.STOPPED, None
        self._on_change()


def _launch(watched: _Watched, now: float) -> None:
    path = watched.service.log_path
    watched.log_start = path.stat().st_size if path.exists() else 0
    try:
        watched.process = watched.service.launch()
    except (OSError, PipelineError) as error:
        _plan_next(watched, now, f"could not be started ({error})")
        return
    watched.launched_at = watched.next_ask = now
    if watched.was_ready:
        watched.restarts += 1
    log.info("%s starts (process %d)", watched.service.name, watched.process.pid)


def _bury(watched: _Watched, now: float) -> None:
    assert watched.process is not None
    if watched.phase is ProcessPhase.RUNNING and now > watched.ready_at + _STEADY:
        watched.num_deaths = 0
    _plan_next(watched, now, _how_it_ended(watched.process.returncode))
    watched.process = None


def _plan_next(watched: _Watched, now: float, reason: str) -> None:
    wait = _BACKOFF[min(watched.num_deaths, len(_BACKOFF) - 1)]
    watched.num_deaths += 1
    watched.next_launch = now + wait
    watched.reason = reason
    if watched.was_ready:
        watched.phase = ProcessPhase.RESTARTING
        log.warning("%s %s; it is started again in %g s", watched.service.name, reason, wait)


def _is_ready(service: Service, pid: int) -> bool:
    try:
        return service.is_ready(pid)
    except Exception as error:  # noqa: BLE001  whatever a check stumbles over, the other services must be looked after
        log.warning("%s could not be asked whether it is ready: %s", service.name, type(error).__name__)
        return False


def _check_first_start(watched: _Watched) -> None:
    """Raise StackError if the first start of a service has failed or takes too long."""
    if watched.was_ready:
        return
    name, tail = watched.service.name, watched.log_tail()
    if watched.num_deaths >= watched.service.first_tries:
        if tail and tail[-1].lower().startswith(_TOLD):
            raise StackError(f"{name} could not start: {tail[-1][len(_TOLD) :]}")
        raise StackError(f"{name} {watched.reason} before it was ready. {_quote(watched.service.log_path, tail)}")
    if watched.process is not None and time.monotonic() > watched.launched_at + watched.service.ready_seconds:
        raise StackError(
            f"{name} was not ready after {watched.service.ready_seconds:g} s. {_quote(watched.service.log_path, tail)}"
        )


def _quote(path: Path, tail: Sequence[str]) -> str:
    if not tail:
        return f"Its log {path} is empty."
    return f"Its log {path} ends with:\n" + "\n".join(f"    {line}" for line in tail)


def _how_it_ended(returncode: int) -> str:
    if returncode < 0:
        return f"was ended by {signal.Signals(-returncode).name}"
    return f"ended with exit code {returncode}"


def _signal(watched: _Watched, sig: signal.Signals) -> None:
    if watched.process is not None and watched.process.poll() is None:
        watched.process.send_signal(sig)
