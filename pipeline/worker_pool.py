"""The pool of our Celery workers: threads that wake the event loop when a task ends."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import Future
from typing import Any

import structlog
from celery.concurrency.thread import ApplyResult
from celery.concurrency.thread import TaskPool as ThreadPool

log = structlog.get_logger(__name__)


class TaskPool(ThreadPool):  # type: ignore[misc]
    """Celery's thread pool, which the event loop does not notice ending a task.

    With early acknowledgement and without prefetching, a worker whose threads were all busy asks Redis for the next
    message only when its event loop turns again, up to a second later. A byte in a pipe turns it at once.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Never closed: a task may end while the pool stops, and the pool lasts as long as its process.
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def register_with_event_loop(self, hub: Any) -> None:
        """Called at the start, and again after every reconnection to Redis."""
        hub.add_reader(self._wake_read, self._drain)

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_read, 4096):
                pass

    def wake(self, _: Future[Any] | None = None) -> None:
        """Turn the event loop, from any thread: it may have room for a message."""
        # A full pipe wakes the loop as well as one more byte would.
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")

    def on_apply(self, *args: Any, **kwargs: Any) -> ApplyResult:
        result = super().on_apply(*args, **kwargs)
        result.f.add_done_callback(self.wake)
        return result

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """A thread can't be ended from outside; without this, Flower's Terminate and SIGQUIT end the worker instead."""
        log.warning("a running task can't be terminated; it ends by itself")
