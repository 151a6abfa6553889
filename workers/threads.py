"""Threads that a group can't do without."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)


class GuardedThread(threading.Thread):
    """A thread whose failure is the failure of its group: better none, whose leases run out, than half of one."""

    def __init__(self, name: str, work: Callable[[], None], on_failure: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self._on_failure = on_failure

    def run(self) -> None:
        try:
            self._work()
        except Exception as error:  # whatever it is, the group must not go on without this thread
            log.critical("a thread of the group failed", thread=self.name, exc_info=error)
            self._on_failure()
