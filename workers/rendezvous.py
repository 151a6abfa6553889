"""Where the ranks of one generation find each other. Imports no torch, since the parent of the ranks makes it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

_IN_MEMORY = "/dev/shm"  # noqa: S108 - what is made there is private


class Rendezvous:
    """A file in a folder that only this user can enter.

    Each generation of ranks needs a fresh one: what a dead generation left there would mislead the next. A file rather
    than a port, so that no other process can be in its place or talk to it. In memory where there is such a place,
    since ranks on CPUs share the file's memory.
    """

    def __init__(self) -> None:
        in_memory = _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK | os.X_OK) else None
        self._folder = Path(tempfile.mkdtemp(prefix="ryzanstein-ranks-", dir=in_memory))

    @property
    def path(self) -> str:
        """For `workers.communicator.connect`."""
        return str(self._folder / "store")

    def remove(self) -> None:
        """Delete it, once the ranks are connected or gone. Idempotent."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()
