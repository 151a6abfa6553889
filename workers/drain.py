"""A group that a person wants to hold nothing, until it is told to resume: `ryzanstein drain` and `resume`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from pipeline.tables.fleet import GroupState
from workers.held_slices import HeldSlices
from workers.threads import GuardedThread

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 0.1


class Drain:
    """Pauses the held slices while it is wanted: what runs may finish within the drain time, the rest is returned.

    Unlike at SIGTERM the process stays, with its model loaded.
    """

    def __init__(
        self,
        held_slices: HeldSlices,
        return_all: Callable[[], None],
        drain_seconds: float,
        on_failure: Callable[[], None],
    ) -> None:
        self._held_slices = held_slices
        self._return_all = return_all
        self._drain_seconds = drain_seconds
        self._on_failure = on_failure
        self._is_wanted = threading.Event()
        self._is_stopping = threading.Event()
        self._is_drained = False
        self._thread: GuardedThread | None = None

    @property
    def state(self) -> GroupState | None:
        """How far it is; None while nobody wants it."""
        if not self._is_wanted.is_set():
            return None
        return GroupState.DRAINED if self._is_drained else GroupState.DRAINING

    def want(self, is_wanted: bool) -> None:
        """Called with each heartbeat, by one thread."""
        if is_wanted and not self._is_wanted.is_set():
            log.info("the group drains: it takes nothing more")
            self._held_slices.pause()
            self._is_drained = False
            self._is_wanted.set()
            self._join()
            self._thread = GuardedThread("pauser", self._run, self._on_failure)
            self._thread.start()
        elif not is_wanted and self._is_wanted.is_set():
            log.info("the group resumes")
            self._is_wanted.clear()
            self._join()
            self._held_slices.resume()

    def stop(self) -> None:
        self._is_stopping.set()
        self._join()

    def _run(self) -> None:
        deadline = time.monotonic() + self._drain_seconds
        while time.monotonic() < deadline and not self._held_slices.wait_until_settled(_LOOK_SECONDS):
            if not self._is_wanted.is_set() or self._is_stopping.is_set():
                return
        self._return_all()
        self._is_drained = True
        log.info("the group is drained")

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
