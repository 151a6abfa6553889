"""What the control worker did: runs of its tasks, and what its sweeps set right."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from pipeline.telemetry.metrics import control_names as names
from pipeline.telemetry.metrics.registry import family, make_counter, make_histogram


class TaskMetrics(Collector):
    """Thread-safe. There is one in a process, `TASKS`, since the tasks of Celery are known by their names alone."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._runs = make_counter(names.TASK_RUNS, self._registry)
        self._seconds = make_histogram(names.TASK_SECONDS, self._registry)
        self._swept = make_counter(names.SWEPT, self._registry)
        self._leases_lost = make_counter(names.LEASES_LOST, self._registry)
        self._swept_at: float | None = None

    @contextmanager
    def run(self, task: str) -> Iterator[None]:
        """Around one run; an error that leaves it makes the run a failed one."""
        began = time.perf_counter()
        result = "failed"
        try:
            yield
            result = "succeeded"
        finally:
            self._seconds.labels(task).observe(time.perf_counter() - began)
            self._runs.labels(task, result).inc()

    def know(self, task: str) -> None:
        """That there is a task to count, so that its first run is seen as a rise."""
        for result in ("succeeded", "failed"):
            self._runs.labels(task, result)

    def swept(self, parts: Iterable[str], done: Mapping[str, int]) -> None:
        """A sweep of these parts has ended, which set so much right."""
        self._swept_at = time.time()
        for part in parts:
            self._swept.labels(part).inc(done.get(part, 0))
        self._leases_lost.inc(done.get("lost_slices", 0))

    def collect(self) -> Iterator[Family]:
        yield from self._registry.collect()
        if self._swept_at is not None:
            yield family(names.SWEEP_AT, [((), self._swept_at)])


TASKS: Final = TaskMetrics()
