"""The control worker: a Celery worker on the queue `control`, with beat as one of its threads."""

from __future__ import annotations

import socket
import sys
from typing import Any, Final

from celery import bootsteps
from celery.beat import EmbeddedService, Scheduler

from pipeline.celery import CONTROL_QUEUE, app
from pipeline.telemetry.logs import configure_logging
from pipeline.worker_pool import TaskPool

#: More than the batches prepared at once, so that sweeps and the closing of batches never wait behind those.
_NUM_THREADS: Final = 6


class Beat(bootsteps.StartStopStep):  # type: ignore[misc]
    """Sends the sweep and the relay on their way.

    As a thread, with its schedule in memory: there is no file to lose, and two control workers do no harm.
    """

    requires = ("celery.worker.components:Timer",)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._thread = EmbeddedService(app, thread=True, scheduler_cls=Scheduler)

    def start(self, worker: Any) -> None:
        self._thread.start()

    def stop(self, worker: Any) -> None:
        # Without waiting: the thread may be waiting for Redis itself. It is a daemon, and keeps nothing.
        self._thread.service.stop(wait=False)


def run_control_worker() -> None:
    """Work until SIGTERM, finish the tasks at hand, and leave the process.

    `-n` of this node is `control@HOST`.
    """
    configure_logging("control")
    app.steps["worker"].add(Beat)
    worker = app.Worker(
        hostname=f"control@{socket.gethostname()}",
        queues=[CONTROL_QUEUE],
        pool=TaskPool,
        concurrency=_NUM_THREADS,
        without_gossip=True,
        without_mingle=True,
        task_events=True,
        quiet=True,
    )
    worker.start()
    sys.exit(worker.exitcode)
