"""Where the ranks of one generation find each other. Imports no torch, since the parent of the ranks makes it."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_IN_MEMORY: Final = "/dev/shm"  # noqa: S108 - what is made there is private
_PREFIX: Final = "ryzanstein-ranks-"


class Rendezvous:
    """A file in a folder that only this user can enter.

    Each generation of ranks needs a fresh one: what a dead generation left there would mislead the next. A file rather
    than a port, so that no other process can be in its place or talk to it. In memory where there is such a place,
    since ranks on CPUs share the file's memory.

    The folder is locked as long as whoever made it lives, so that folders of those who were killed are told from
    others; making one removes them.
    """

    def __init__(self) -> None:
        in_memory = _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK | os.X_OK) else None
        parent = Path(in_memory or tempfile.gettempdir())
        _remove_abandoned(parent)
        while True:
            self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            self._lock = _lock(self._folder)
            if self._lock is not None:
                break  # else another one took it for abandoned before it was locked

    @property
    def path(self) -> str:
        """For `workers.communicator.connect`."""
        return str(self._folder / "store")

    def remove(self) -> None:
        """Delete it, once the ranks are connected or gone. Idempotent."""
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the lock of `folder`; None where it is locked, gone, or somebody else's."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_there = os.path.samestat(os.fstat(descriptor), folder.stat())
    except (BlockingIOError, FileNotFoundError):
        is_there = False
    if is_there:
        return descriptor
    os.close(descriptor)
    return None


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        if (descriptor := _lock(folder)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)
