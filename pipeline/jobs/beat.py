"""Beat inside the control worker: sends the sweep and the relay on their way, whether or not Redis is there."""

from __future__ import annotations

from typing import Any

import structlog
from celery import bootsteps
from celery.beat import EmbeddedService, ScheduleEntry, Scheduler, SchedulingError

from pipeline.celery import PROMPT_OPTIONS, RELAY
from pipeline.errors import PipelineError
from pipeline.jobs import outbox
from pipeline.telemetry.logs import summarize_error

log = structlog.get_logger(__name__)


class _Scheduler(Scheduler):  # type: ignore[misc]
    """Celery's scheduler with its schedule in memory, so that there is no file to lose.

    Celery's own waits for Redis before it begins, and gives up a task that Redis does not take. A lease that runs
    out while Redis is away has to be swept all the same, so here such a task runs in beat's thread.
    """

    #: Celery's own, which it would connect without a limit of time.
    producer = None
    _broker: Any = None
    _is_alone = False

    def apply_entry(self, entry: ScheduleEntry, producer: Any = None) -> None:
        if entry.task == RELAY and outbox.is_empty():
            return  # a look costs a tenth of a task, every second, of the processors that generate
        try:
            self.apply_async(entry, producer=self._producer(), advance=False)
        except SchedulingError as error:
            self._broker.release()
            self._broker = None
            if not self._is_alone:
                log.warning("Redis takes no messages; beat runs its tasks itself", reason=summarize_error(error))
            self._is_alone = True
            self._run(entry)
        else:
            self._is_alone = False

    def _producer(self) -> Any:
        if self._broker is None:
            self._broker = self.app.connection_for_write(transport_options=PROMPT_OPTIONS, connect_timeout=2)
        return self.app.amqp.Producer(self._broker, auto_declare=False)

    def _run(self, entry: ScheduleEntry) -> None:
        try:
            self.app.tasks[entry.task]()
        except PipelineError as error:
            log.warning("beat could not run a task", task=entry.task, reason=summarize_error(error))


class Beat(bootsteps.StartStopStep):  # type: ignore[misc]
    """Beat as a thread of a worker. Two workers with beat do no harm: what it sends may be sent twice."""

    requires = ("celery.worker.components:Timer",)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._thread = EmbeddedService(worker.app, thread=True, scheduler_cls=_Scheduler)

    def start(self, worker: Any) -> None:
        self._thread.start()

    def stop(self, worker: Any) -> None:
        # Without waiting: the thread may itself wait for Redis. It is a daemon, and keeps nothing.
        self._thread.service.stop(wait=False)
