"""All of what control knows of the service, as one collector."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from pipeline.celery import CONTROL_QUEUE, generate_queue
from pipeline.settings import Settings
from pipeline.tables.session import make_engine
from pipeline.telemetry.metrics import control_names as names
from pipeline.telemetry.metrics.metric import Metric
from pipeline.telemetry.metrics.registry import family
from pipeline.telemetry.metrics.service.books import Books
from pipeline.telemetry.metrics.service.database import check_database, read_database
from pipeline.telemetry.metrics.service.disks import read_disks
from pipeline.telemetry.metrics.service.money import MoneySection
from pipeline.telemetry.metrics.service.queues import REDIS_ERRORS, RedisSection, use_redis
from pipeline.telemetry.metrics.service.reader import WAIT_SECONDS, Reader, Samples, Section, Values
from pipeline.telemetry.metrics.service.top_tenants import TopTenants
from pipeline.telemetry.metrics.service.usage import UsageSection, WasteSection
from pipeline.telemetry.metrics.service.waiting import WaitingSection
from pipeline.telemetry.metrics.service.webhooks import read_webhooks
from pipeline.telemetry.metrics.service.work import (
    read_all_batches,
    read_groups,
    read_outbox,
    read_slices,
    read_unfinished_batches,
    served_models,
)

#: A statement for metrics that takes longer is given up; it never waits for a lock that others hold.
_LIMITS = text("SET LOCAL statement_timeout = '2s'; SET LOCAL lock_timeout = '200ms'")


class ServiceMetrics(Collector):
    """Reads on connections of its own, two at most, and one more while it compares the books."""

    def __init__(self, settings: Settings, wait_seconds: float = WAIT_SECONDS) -> None:
        self._wait_seconds = wait_seconds
        self._database = make_engine(settings.database_url.get_secret_value(), pool_size=2)
        self._queues: list[str] = [CONTROL_QUEUE]
        self._books = Books(self._database, settings.metrics_drift_seconds, settings.default_currency)
        tenants = TopTenants(settings.metrics_tenants)
        redis = RedisSection(lambda: self._queues)
        self._sql = self._sql_reader(
            "sql",
            Section("queues", self._find_queues, 5.0),
            Section("groups", read_groups, 0.5),
            Section("outbox", read_outbox, 0.5),
            Section("batches", read_unfinished_batches, 0.5),
            Section("slices", read_slices, 1.0),
        )
        # Apart from those, since they may take their time.
        self._slow_sql = self._sql_reader(
            "slow-sql",
            Section("usage", UsageSection(tenants).read, 5.0),
            Section("waste", WasteSection().read, 5.0),
            Section("waiting", WaitingSection(tenants).read, 2.0),
            Section("money", MoneySection(tenants).read, 5.0),
            Section("all_batches", read_all_batches, 5.0),
            Section("webhooks", read_webhooks, 5.0),
            Section("database", read_database, 10.0),
            Section("disks", read_disks, 10.0),
        )
        self._redis = Reader(
            "redis",
            [Section("redis_queues", redis.read_queues, 0.5), Section("redis_memory", redis.read_memory, 10.0)],
            use_redis,
            REDIS_ERRORS,
            redis.check,
        )

    def _sql_reader(self, name: str, *sections: Section[Connection]) -> Reader[Connection]:
        return Reader(name, sections, self._use_sql, (SQLAlchemyError,), check_database)

    def _use_sql(self, read: Callable[[Connection], Values]) -> Values:
        with self._database.connect() as conn, conn.begin():
            conn.execute(_LIMITS)
            return read(conn)

    def _find_queues(self, conn: Connection) -> Values:
        self._queues = [CONTROL_QUEUE, *map(generate_queue, served_models(conn))]
        return {}

    def collect(self) -> Iterator[Family]:
        deadline = time.monotonic() + self._wait_seconds
        asked = [self._sql.ask(), self._slow_sql.ask(), self._redis.ask()]
        answers = [wait(deadline - time.monotonic()) for wait in asked]
        sql, _, redis = answers
        sections = {name: told for answer in answers for name, told in answer.sections.items()}
        values = [values for answer in answers for values in answer.values]
        if sql.is_up:
            values.append(self._books.ask())
        yield family(names.DATABASE_UP, [((), sql.is_up)])
        yield family(names.REDIS_UP, [((), redis.is_up)])
        yield family(names.SECTION_UP, [((name,), is_up) for name, (is_up, _) in sections.items()])
        yield family(names.SECTION_SECONDS, [((name,), seconds) for name, (_, seconds) in sections.items()])
        for metric, samples in _merged(values).items():
            yield family(metric, samples)

    def close(self) -> None:
        self._database.dispose()


def _merged(values: Iterable[Values]) -> dict[Metric, Sequence[tuple[Sequence[str], float]]]:
    """Two sections may have values of one metric."""
    merged: dict[Metric, list[tuple[Sequence[str], float]]] = defaultdict(list)
    for one in values:
        samples: Samples
        for metric, samples in one.items():
            merged[metric].extend(samples)
    return dict(merged)
