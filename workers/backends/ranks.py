"""One generation of rank processes: started together, watched, and ended together."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

import structlog

from pipeline.settings import get_settings
from workers.backends.cores import Cores
from workers.backends.protocol import EngineStartError
from workers.backends.rank_processes import KILL_SECONDS, ForkServer, RankProcess, StoppedProcesses, describe_exit
from workers.engine.messages import (
    Channel,
    ChannelClosed,
    Failed,
    Fork,
    FromRank,
    Message,
    Ready,
    Shutdown,
    Start,
    encode,
)
from workers.engine.options import EngineOptions
from workers.rendezvous import Rendezvous

log = structlog.get_logger(__name__)

#: After the first sign of a failure, how long to wait for the rank that knows why, in seconds.
DIAGNOSIS_SECONDS = 0.5
#: How long ranks may take to exit when told to, in seconds.
EXIT_SECONDS = 2.0
#: How long the stacks of hanging ranks may take to be written, in seconds.
DUMP_SECONDS = 0.3
_POLL_SECONDS = 0.2


class Ranks:
    """The processes of one engine, rank 0 first. All methods but `send` belong to one thread."""

    def __init__(self, options: EngineOptions, server: ForkServer) -> None:
        """Forks them. Raises EngineStartError if the system refuses; else `wait_ready` must be called."""
        self._options = options
        self._server = server
        self._rendezvous = Rendezvous()
        self._channels: list[Channel[FromRank]] = []
        self._processes: list[RankProcess] = []
        #: What each rank said before it went, or None if it said nothing.
        self._ended: dict[int, Failed | None] = {}
        self._unread: list[FromRank] = []
        self._stopped = StoppedProcesses()
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._send_all, name="rank-sender", daemon=True)
        try:
            self._fork_all(server.cores)
        except OSError as error:
            self.kill()
            raise EngineStartError(f"The system does not start the ranks: {error}") from error
        except BaseException:
            self.kill()
            raise
        self._sender.start()

    def _fork_all(self, cores: Cores) -> None:
        settings = get_settings()
        pairs = [Pipe() for _ in range(1, self._options.tp)]  # (rank 0's end, the follower's end)
        theirs: list[Connection] = [end for pair in pairs for end in pair]
        try:
            for rank in range(self._options.tp):
                mine, parent = Pipe()
                theirs.append(parent)
                self._channels.append(Channel(mine, FromRank))
                peers = [end for end, _ in pairs] if rank == 0 else [pairs[rank - 1][1]]
                fork = Fork(
                    rank=rank, cores=cores.of_rank(rank), log_level=settings.log_level, log_format=settings.log_format
                )
                self._processes.append(self._server.fork(fork, [end.fileno() for end in (parent, *peers)]))
        finally:
            # A pipe ends when all its writers are gone: none of theirs may stay open here.
            for end in theirs:
                end.close()
        start = Start(
            options=self._options,
            rendezvous=self._rendezvous.path,
            num_threads=cores.num_threads,
            has_own_cores=cores.are_enough,
        )
        for channel in self._channels:
            with contextlib.suppress(ChannelClosed):  # its end is noticed by `receive`
                channel.send(start)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    @property
    def has_failed(self) -> bool:
        return bool(self._ended)

    def wait_ready(self, deadline: float, is_cancelled: threading.Event) -> Ready:
        """Return when rank 0 is warm. Whatever is raised instead, all ranks are gone then.

        `deadline` is of the monotonic clock.
        Raises EngineStartError with what the rank that failed says.
        """
        try:
            return self._wait_ready(deadline, is_cancelled)
        except BaseException:
            self.kill()
            raise

    def _wait_ready(self, deadline: float, is_cancelled: threading.Event) -> Ready:
        while time.monotonic() < deadline:
            for message in self.receive(_POLL_SECONDS):
                if isinstance(message, Ready):
                    self._rendezvous.remove()
                    return message
            if self.has_failed:
                raise EngineStartError(self.diagnose())
            if (rank := self.find_stopped()) is not None:
                raise EngineStartError(f"Rank {rank} (process {self.pids[rank]}) was stopped by a signal.")
            if is_cancelled.is_set():
                raise EngineStartError("The engine was stopped while it started.")
        self.dump_stacks()
        raise EngineStartError(
            f"The engine was not ready after {self._options.start_seconds:g} seconds; "
            "the log holds what its ranks were doing."
        )

    # --- messages

    def send(self, message: Message) -> None:
        """To rank 0, without waiting for it to read. Thread-safe."""
        self._outbox.put(encode(message))

    def _send_all(self) -> None:
        with contextlib.suppress(ChannelClosed):  # its end is noticed by `receive`
            while (message := self._outbox.get()) is not None:
                self._channels[0].send_encoded(message)

    def receive(self, timeout: float) -> list[FromRank]:
        """What the ranks say, as soon as one says something; none after `timeout` seconds.

        How a rank failed is kept for `diagnose`.
        """
        if self._unread:
            messages, self._unread = self._unread, []
            return messages
        descriptors = {channel.fileno(): rank for rank, channel in enumerate(self._channels) if rank not in self._ended}
        received: list[FromRank] = []
        for descriptor in wait(descriptors, timeout):
            assert isinstance(descriptor, int)
            received += self._receive_from(descriptors[descriptor])
        return received

    def _receive_from(self, rank: int) -> list[FromRank]:
        channel = self._channels[rank]
        messages: list[FromRank] = []
        try:
            while channel.poll():
                message = channel.receive()
                if isinstance(message, Failed):
                    self._ended[rank] = message
                    break
                messages.append(message)
        except ChannelClosed:
            self._ended[rank] = None
        return messages

    # --- faults

    def diagnose(self) -> str:
        """Why the ranks failed, in the words of the one that failed first. `receive` then has what they said last."""
        unread: list[FromRank] = []
        deadline = time.monotonic() + DIAGNOSIS_SECONDS
        while (reason := self._first_cause()) is None and time.monotonic() < deadline:
            if len(self._ended) < len(self._processes):
                unread.extend(self.receive(0.05))
            else:
                time.sleep(0.01)  # all pipes have ended; an exit status may take a moment more
        self._unread = unread
        if reason is not None:
            return reason
        said = [f"rank {rank}: {failed.message}" for rank, failed in self._ended.items() if failed is not None]
        return said[0] if said else "a rank closed its pipe"

    def _first_cause(self) -> str | None:
        for rank, failed in self._ended.items():
            if failed is not None and not failed.is_consequence:
                return f"rank {rank}: {failed.message}"
        for rank, failed in self._ended.items():
            if failed is None and (status := self._processes[rank].exit_status()) is not None:
                return f"rank {rank} (process {self._processes[rank].pid}) {describe_exit(status)}"
        return self._server.describe_end()

    def find_stopped(self) -> int | None:
        """A rank that was stopped by a signal for a second or so; None if there is none. Call it often."""
        pid = self._stopped.find(self.pids)
        return None if pid is None else self.pids.index(pid)

    def dump_stacks(self) -> None:
        """Let the ranks write to the log what they are doing."""
        for process in self._processes:
            process.send_signal(signal.SIGUSR1)
        time.sleep(DUMP_SECONDS)

    # --- the end

    def shut_down(self) -> None:
        """Ask them to exit, and kill what does not."""
        self.send(Shutdown())
        deadline = time.monotonic() + EXIT_SECONDS
        for process in self._processes:
            process.wait(max(0.0, deadline - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        """End all of them at once, and wait until they are gone. Called once."""
        for process in self._processes:
            process.send_signal(signal.SIGKILL)
        for process in self._processes:
            if not process.wait(KILL_SECONDS):
                log.error("a rank was killed but does not end; its device may be stuck", pid=process.pid)
            process.close()
        if self._sender.is_alive():
            # The pipe is closed only when nobody writes to it any more: its number may soon be another file's.
            self._outbox.put(None)
            self._sender.join(KILL_SECONDS)
        for channel in self._channels:
            channel.close()
        self._rendezvous.remove()
