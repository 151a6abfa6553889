"""`ryzanstein restart`: processes of a running stack end in order and start again, one after the other."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import psutil

from pipeline.errors import UserError
from pipeline.stack.data_dir import DataDir
from pipeline.stack.state import ProcessPhase, StackState, find_state

#: PostgreSQL takes SIGINT for its fast shutdown, which does not wait for its clients.
_SIGNALS: Final = {"postgres": signal.SIGINT}
#: What others need goes last, so that a new version of everything else has met the old servers by then.
_SERVERS: Final = ("redis", "postgres")
_LOOK_SECONDS: Final = 0.1


class RestartError(UserError):
    """A process could not be restarted."""


@dataclass(frozen=True, kw_only=True)
class Restarted:
    name: str
    old_pid: int
    new_pid: int
    #: From the signal until it is ready again.
    seconds: float


def restart_order(state: StackState) -> list[str]:
    """Every process of a stack: groups, then what is in front of them, then the servers."""
    groups = sorted(name for name in state.processes if name.startswith("group-"))
    others = [name for name in state.processes if name not in (*groups, *_SERVERS)]
    return [*groups, *others, *(name for name in _SERVERS if name in state.processes)]


def restart(data_dir: DataDir, names: Sequence[str], *, patience: float, tell: Callable[[Restarted], object]) -> None:
    """Restart each of these, or all where there are none, and go on when it is ready again.

    A group drains first. The supervisor starts what has ended, as it always does. `tell` hears of each. Raises
    RestartError for a name that is none, or where one is not ready again after `patience` seconds.
    """
    state = _running(data_dir)
    if unknown := [name for name in names if name not in state.processes]:
        raise RestartError(f"No process is called {unknown[0]!r}; there are: {', '.join(state.processes)}.")
    for name in names or restart_order(state):
        tell(_restart(data_dir, name, patience))


def _restart(data_dir: DataDir, name: str, patience: float) -> Restarted:
    began = time.monotonic()
    deadline = began + patience
    # One that dies or starts at this moment is restarted when it is ready.
    while (pid := _ready_pid(data_dir, name)) is None:
        _wait(deadline, name, "is not ready", patience)
    _signal(data_dir, pid, _SIGNALS.get(name, signal.SIGTERM))
    while (new_pid := _ready_pid(data_dir, name)) in (None, pid):
        _wait(deadline, name, "is not ready again", patience)
    assert new_pid is not None
    return Restarted(name=name, old_pid=pid, new_pid=new_pid, seconds=time.monotonic() - began)


def _wait(deadline: float, name: str, what: str, patience: float) -> None:
    if time.monotonic() > deadline:
        raise RestartError(
            f"{name} {what} after {patience:g} s. `ryzanstein status` and its log say why; what comes after it was "
            "left as it is."
        )
    time.sleep(_LOOK_SECONDS)


def _ready_pid(data_dir: DataDir, name: str) -> int | None:
    process = _running(data_dir).processes[name]
    return process.pid if process.state is ProcessPhase.RUNNING else None


def _running(data_dir: DataDir) -> StackState:
    state = find_state(data_dir)
    if state is None or data_dir.supervisor_pid() is None:
        raise RestartError(f"No stack runs in {data_dir.root}. Start it with `ryzanstein up`.")
    return state


def _signal(data_dir: DataDir, pid: int, number: signal.Signals) -> None:
    """Only to what the supervisor has started: the state that names the pid may be a moment old."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.ppid() == data_dir.supervisor_pid():
            process.send_signal(number)
