"""The processes of ranks, and the one that forks them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import wait

import msgspec
import psutil
import structlog

from pipeline.settings import PREFIX
from workers.backends.cores import Cores, usable_cores
from workers.backends.protocol import EngineStartError
from workers.engine.messages import Ended, Fork, Forked, FromForkServer, NotForked, Serving, encode
from workers.engine.options import EngineOptions

log = structlog.get_logger(__name__)

#: How long a fork may take, in seconds.
ANSWER_SECONDS = 5.0
#: How often to look for processes that a signal stopped, in seconds; the second look in a row counts.
STOPPED_SECONDS = 1.0
#: How long a process may take to be gone when it was killed, in seconds.
KILL_SECONDS = 5.0
_POLL_SECONDS = 0.2
_MESSAGE_BYTES = 4_096


class StoppedProcesses:
    """Looks for processes that SIGSTOP, or a debugger, keeps from running."""

    def __init__(self) -> None:
        self._before: set[int] = set()
        self._looked_at = time.monotonic()

    def find(self, pids: Sequence[int]) -> int | None:
        """One that was stopped at this look and at the one before; None if there is none.

        Call it as often as you like: a look comes every `STOPPED_SECONDS`.
        """
        now = time.monotonic()
        if now < self._looked_at + STOPPED_SECONDS:
            return None
        self._looked_at = now
        stopped = {pid for pid in pids if is_stopped(pid)}
        both, self._before = stopped & self._before, stopped
        return min(both, default=None)


class ForkServerLost(EngineStartError):
    """It can't be asked any more; another one may serve."""


class ForkServer:
    """The process that has torch, and forks ranks. It ends with the thread that made it, and the ranks with it.

    All methods, those of the ranks' processes too, are for that thread.
    """

    def __init__(self, options: EngineOptions) -> None:
        """Starts it. Raises EngineStartError if the system refuses."""
        self._options = options
        self.cores = _cores(options)
        self._is_serving = False
        #: Whether nothing comes from it any more.
        self._is_gone = False
        self._answer: RankProcess | NotForked | None = None
        #: Of ranks that have ended.
        self._statuses: dict[int, int] = {}
        self._decoder: msgspec.msgpack.Decoder[FromForkServer] = msgspec.msgpack.Decoder(FromForkServer)
        try:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise EngineStartError(f"The system has no socket for the fork server of the ranks: {error}") from error
        try:
            with theirs:
                self._process = subprocess.Popen(
                    # -P: a folder named `workers` where the command was given is not ours.
                    [sys.executable, "-P", "-m", "workers.fork_server", "--control", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # a command's output may be JSON: what a library prints belongs to the log
                    env=_environment(self.cores),
                )
        except OSError as error:
            self._control.close()
            raise EngineStartError(f"The system does not start the fork server of the ranks: {error}") from error

    def wait_ready(self, deadline: float, is_cancelled: threading.Event) -> None:
        """Return when it can fork. Raises EngineStartError, and then it has ended.

        `deadline` is of the monotonic clock.
        """
        try:
            self._wait_ready(deadline, is_cancelled)
        except EngineStartError:
            self.stop()
            raise

    def _wait_ready(self, deadline: float, is_cancelled: threading.Event) -> None:
        stopped = StoppedProcesses()
        while not self._is_serving:
            if not self._take(_POLL_SECONDS) and self._is_gone:
                raise EngineStartError(f"{self._last_words()} The log may hold why.")
            if stopped.find([self._process.pid]) is not None:
                raise EngineStartError(f"The fork server (process {self._process.pid}) was stopped by a signal.")
            if is_cancelled.is_set():
                raise EngineStartError("The engine was stopped while it started.")
            if time.monotonic() > deadline:
                raise EngineStartError(
                    f"The engine was not ready after {self._options.start_seconds:g} seconds: torch was not imported."
                )

    def fork(self, message: Fork, descriptors: Sequence[int]) -> RankProcess:
        """A rank that has these descriptors. Raises EngineStartError, and ForkServerLost where there is no answer."""
        deadline = time.monotonic() + ANSWER_SECONDS
        with contextlib.suppress(OSError):  # it is gone, and will not answer
            socket.send_fds(self._control, [encode(message)], descriptors)
        while self._answer is None and self._take(max(0.0, deadline - time.monotonic())):
            pass
        answer, self._answer = self._answer, None
        if answer is None:
            late = f"The fork server (process {self._process.pid}) did not answer within {ANSWER_SECONDS:g} seconds."
            is_late = not self._is_gone
            if is_late:
                self.stop()  # what it answers later would be taken for the answer to another question
            raise ForkServerLost(late if is_late else self._last_words())
        if isinstance(answer, NotForked):
            raise EngineStartError(f"The system does not start rank {message.rank}: {answer.reason}")
        return answer

    def status(self, pid: int) -> int | None:
        """The exit status of a rank; None where it was not told yet."""
        while self._take(timeout=0.0):
            pass
        return self._statuses.get(pid)

    @property
    def is_usable(self) -> bool:
        """Whether it can be asked to fork, for the cores that there are now."""
        return not self._is_gone and self._process.poll() is None and self.cores == _cores(self._options)

    def describe_end(self) -> str | None:
        """None if it has not ended."""
        status = self._process.poll()
        return None if status is None else f"the fork server (process {self._process.pid}) {describe_exit(status)}"

    def _last_words(self) -> str:
        """Of one that has closed its socket, which is just about to end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_POLL_SECONDS)
        end = self.describe_end() or f"the fork server (process {self._process.pid}) closed its socket"
        return f"{end[0].upper()}{end[1:]}."

    def stop(self) -> None:
        """End it, and with it what is left of its ranks. Returns when it is gone. Idempotent."""
        self._process.kill()
        try:
            self._process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            log.error("the fork server was killed but does not end", pid=self._process.pid)
        self._is_gone = True
        self._control.close()

    def _take(self, timeout: float) -> bool:
        """Read one message, and keep what it says. False if none comes in time, or ever again."""
        if self._is_gone or not wait([self._control], timeout):
            return False
        encoded = b""
        descriptors: list[int] = []
        with contextlib.suppress(ConnectionError):  # it went without reading all that it was told
            encoded, descriptors, _, _ = socket.recv_fds(self._control, _MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        if not encoded:
            self._is_gone = True
            return False
        match self._decoder.decode(encoded):
            case Serving():
                self._is_serving = True
            case Forked() if not descriptors:
                self.stop()  # and the rank with it, which can't be watched
                self._answer = NotForked(reason="this process has no free descriptor for it")
            case Forked(pid=pid):
                self._statuses.pop(pid, None)  # of one that had the same number
                self._answer = RankProcess(self, pid, *descriptors)
            case NotForked() as refusal:
                self._answer = refusal
            case Ended(pid=pid, status=status):
                self._statuses[pid] = status
        return True


class RankProcess:
    """A rank that was forked, by a descriptor that never stands for another process, as its number may."""

    def __init__(self, server: ForkServer, pid: int, descriptor: int) -> None:
        self.pid = pid
        self._server = server
        self._descriptor = descriptor

    def send_signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            signal.pidfd_send_signal(self._descriptor, number)

    def wait(self, timeout: float) -> bool:
        """Whether it has ended, at once or within `timeout` seconds."""
        return bool(wait([self._descriptor], timeout))

    def exit_status(self) -> int | None:
        """Minus the signal where one killed it. None if it has not ended, or if nobody has told of it yet."""
        return self._server.status(self.pid)

    def close(self) -> None:
        """Forget it."""
        os.close(self._descriptor)


def _cores(options: EngineOptions) -> Cores:
    return Cores.divide(options.tp, usable_cores(), os.environ)


def _environment(cores: Cores) -> dict[str, str]:
    """Ours without the settings: a rank needs no database, and no password to it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    # No threads before the forks, which would not be in the ranks: numpy's library starts some when it is imported.
    return {**cores.environment(kept), "TOKENIZERS_PARALLELISM": "false", **kept, "OPENBLAS_NUM_THREADS": "1"}


def is_stopped(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return False  # it is gone, which its pipe tells


def describe_exit(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    names = {number.value: number.name for number in signal.Signals}
    name = names.get(-status, f"signal {-status}")
    return f"was killed by {name}" + (" (was memory short?)" if name == "SIGKILL" else "")
