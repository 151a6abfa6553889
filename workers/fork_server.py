"""Forks the ranks of a group: `python -m workers.fork_server`, started by `workers.backends.rank_processes` alone.

Torch takes seconds to import. This process does it once, and every rank that it forks has it at once, in memory that
all of them share: a rank that died is replaced sooner, and several ranks start as soon as one. Nothing else happens
here: a process with threads of its own, or with a GPU, could not be forked safely.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import socket
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from typing import NoReturn

import msgspec

from pipeline.processes import end_with_parent_thread
from workers.engine.messages import Ended, Fork, Forked, Message, NotForked, Serving, encode

#: The most that comes at once: a message in bytes, and descriptors with it (the kernel's own limit).
_MESSAGE_BYTES = 4_096
_MAX_DESCRIPTORS = 253


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m workers.fork_server", description="Forks the ranks of a group.")
    parser.add_argument("--control", type=int, required=True, help="file descriptor of the socket to the parent")
    options = parser.parse_args(arguments)
    # Ctrl-C and a service manager's SIGTERM reach every process at once; when ranks end is for the parent to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent_thread(signal.SIGKILL)
    gc.disable()  # it would look for garbage again and again in what torch has just made
    from workers.rank import run  # what every rank has at once

    gc.freeze()  # nor does a rank look there, which would also copy what it shares
    gc.enable()
    with suppress(ConnectionError):  # the parent is gone
        _Server(socket.socket(fileno=options.control), run).serve()


class _Server:
    def __init__(self, control: socket.socket, run_rank: Callable[..., NoReturn]) -> None:
        """`run_rank` is `workers.rank.run`."""
        control.set_inheritable(False)
        self._control = control
        self._run_rank = run_rank
        #: Ranks that have not ended, by the descriptor of their process.
        self._ranks: dict[int, int] = {}

    def serve(self) -> None:
        """Until the parent is gone. The kernel ends the ranks with this process."""
        self._tell(Serving())
        while True:
            for ready in wait([self._control.fileno(), *self._ranks]):
                if ready != self._control.fileno():
                    assert isinstance(ready, int)
                    self._bury(ready)
                    continue
                message, descriptors, flags, _ = socket.recv_fds(
                    self._control, _MESSAGE_BYTES, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
                )
                if not message:
                    return
                if flags & socket.MSG_CTRUNC:
                    self._tell(NotForked(reason="the fork server has no free descriptor for its pipes"))
                else:
                    self._fork(msgspec.msgpack.decode(message, type=Fork), descriptors)
                # A pipe ends when all its writers are gone: none of a rank's may stay open here.
                for descriptor in descriptors:
                    os.close(descriptor)

    def _fork(self, fork: Fork, descriptors: list[int]) -> None:
        server_pid = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._tell(NotForked(reason=str(error)))
            return
        if pid == 0:
            try:
                self._control.close()
                for pidfd in self._ranks:
                    os.close(pidfd)
                self._run_rank(fork, server_pid, *descriptors)
            except BaseException:  # noqa: BLE001 — this process must not go on as a server
                traceback.print_exc()
                os._exit(1)
        pidfd = os.pidfd_open(pid)
        self._ranks[pidfd] = pid
        self._tell(Forked(pid=pid), pidfd)

    def _bury(self, pidfd: int) -> None:
        pid = self._ranks.pop(pidfd)
        _, status = os.waitpid(pid, 0)
        os.close(pidfd)
        self._tell(Ended(pid=pid, status=os.waitstatus_to_exitcode(status)))

    def _tell(self, message: Message, *descriptors: int) -> None:
        socket.send_fds(self._control, [encode(message)], descriptors)


if __name__ == "__main__":
    main()
