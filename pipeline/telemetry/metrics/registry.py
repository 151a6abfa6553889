"""A process's metrics as prometheus_client keeps them, made from their definitions, and as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from sqlalchemy import Engine
from sqlalchemy.pool import QueuePool

from pipeline.tables.session import MAX_CONNECTIONS
from pipeline.telemetry.metrics.gateway_names import BUILD_INFO, SQL_CONNECTIONS
from pipeline.telemetry.metrics.metric import Kind, Metric

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

#: When each counter began is one more series of everything, which nobody reads.
disable_created_metrics()  # type: ignore[no-untyped-call]


def make_registry(database: Engine | None = None) -> CollectorRegistry:
    """What every process has: its memory and processor time, its version, and its connections to `database`."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    make_gauge(BUILD_INFO, registry).labels(version("ryzanstein")).set(1)
    if database is not None:
        registry.register(_PoolCollector(database))
    return registry


def render(registry: CollectorRegistry) -> bytes:
    """In the text format of Prometheus, `CONTENT_TYPE`."""
    return generate_latest(registry)


def make_counter(metric: Metric, registry: CollectorRegistry) -> Counter:
    assert metric.kind is Kind.COUNTER, metric
    return Counter(metric.name, metric.help, metric.labels, registry=registry)


def make_gauge(metric: Metric, registry: CollectorRegistry) -> Gauge:
    assert metric.kind is Kind.GAUGE, metric
    return Gauge(metric.name, metric.help, metric.labels, registry=registry)


def make_histogram(metric: Metric, registry: CollectorRegistry) -> Histogram:
    assert metric.kind is Kind.HISTOGRAM, metric
    return Histogram(metric.name, metric.help, metric.labels, registry=registry, buckets=metric.buckets)


def family(metric: Metric, samples: Iterable[tuple[Sequence[str], float]]) -> Family:
    """A counter or a gauge as it is now: values with those of its labels."""
    made: CounterMetricFamily | GaugeMetricFamily
    if metric.kind is Kind.COUNTER:
        made = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
    else:
        assert metric.kind is Kind.GAUGE, metric
        made = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, value in samples:
        assert len(labels) == len(metric.labels), (metric.name, labels)
        made.add_metric(labels, value)
    return made


def histogram_family(metric: Metric, labels: Sequence[str], counts: Sequence[int], total: float) -> Family:
    """A histogram as it is now: how many values are under each bound and above the one before, and their sum."""
    made = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    buckets: list[tuple[str, float]] = []
    num_values = 0
    for bound, count in zip((*metric.buckets, float("inf")), counts, strict=True):
        num_values += count
        buckets.append((floatToGoString(bound), num_values))  # type: ignore[no-untyped-call]
    made.add_metric(labels, buckets, total)
    return made


class _PoolCollector(Collector):
    def __init__(self, database: Engine) -> None:
        self._database = database

    def collect(self) -> Iterator[Family]:
        pool = self._database.pool
        if isinstance(pool, QueuePool):
            states = {"in_use": pool.checkedout(), "idle": pool.checkedin(), "limit": MAX_CONNECTIONS}
            yield family(SQL_CONNECTIONS, [([state], num) for state, num in states.items()])
