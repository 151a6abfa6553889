"""Ties a group to the life of its Celery worker."""

from __future__ import annotations

import signal
import sys
import threading
from queue import SimpleQueue
from types import FrameType
from typing import Any

from celery import bootsteps
from celery.worker import state
from sqlalchemy.exc import SQLAlchemyError

from pipeline.telemetry.logs import summarize_error
from pipeline.worker_process import STOP_SIGNALS
from workers.backends.protocol import EngineStartError
from workers.group import Group

_current: list[Group] = []


def current_group() -> Group:
    """The group of this process, which a worker has as long as tasks run."""
    return _current[0]


def group_step(group: Group) -> type[bootsteps.StartStopStep]:
    """A bootstep that loads the model before the first ticket is taken, and ends the group after the last."""

    class GroupStep(bootsteps.StartStopStep):  # type: ignore[misc]
        # Not Pool: a step that requires it is stopped before running tasks end.
        requires = ("celery.worker.components:Timer",)

        def start(self, worker: Any) -> None:
            stopper = _Stopper(group)
            for number in STOP_SIGNALS:
                signal.signal(number, stopper)
            try:
                group.start()
            except (EngineStartError, SQLAlchemyError) as error:
                group.stop()
                reason = str(error) if isinstance(error, EngineStartError) else summarize_error(error)
                print(f"error: {reason}", file=sys.stderr)  # noqa: T201 — for a person at a terminal
                raise SystemExit(1) from None
            except BaseException:
                group.stop()
                raise
            _current.append(group)

        def stop(self, worker: Any) -> None:
            group.stop()
            _current.clear()

        def info(self, worker: Any) -> dict[str, Any]:
            """A part of `celery inspect stats`, and of the worker's page in Flower."""
            return group.describe()

    return GroupStep


class _Stopper:
    """Instead of Celery's handlers, which end a worker at SIGQUIT without waiting for its group.

    The first signal drains; the second, and SIGQUIT, returns at once what is left. While the model loads there is
    nothing to return: the first one ends the worker, and no other may break that off.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._num_signals = 0
        #: Whether to hurry, for each signal. A drain takes locks, which the code that a handler interrupts may hold;
        #: this queue is made to be filled from there.
        self._signals: SimpleQueue[bool] = SimpleQueue()
        threading.Thread(target=self._drain, name="stopper", daemon=True).start()

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self._num_signals += 1
        self._signals.put(self._num_signals > 1 or number == signal.SIGQUIT)
        state.should_stop = 0  # the exit code
        if self._group.is_loading and self._num_signals == 1:
            raise SystemExit(0)

    def _drain(self) -> None:
        while True:
            self._group.drain(hurry=self._signals.get())
