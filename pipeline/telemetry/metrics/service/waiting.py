"""Who waits, for how long and for what; what is served fairly, and what will be late."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from decimal import Decimal
from itertools import product
from typing import Any, Final

from sqlalchemy import Connection, text

from pipeline.jobs.choosing import CLASS_ORDER
from pipeline.jobs.fairness import EXPECTED_COST, weights_of
from pipeline.jobs.load import Load, Queue, load_of
from pipeline.settings import get_settings
from pipeline.tables.batches import PAUSED_BY_CLIENT, ServiceClass
from pipeline.telemetry.metrics import control_names as names
from pipeline.telemetry.metrics.service.reader import Values
from pipeline.telemetry.metrics.service.top_tenants import TopTenants
from pipeline.telemetry.metrics.service.work import served_models

_BATCHES: Final = text(f"""
    WITH left_of AS (
        SELECT s.batch_id, sum({EXPECTED_COST}) AS cost, count(*) AS num_pending FROM slices s
        WHERE s.status = 'pending' GROUP BY s.batch_id
        UNION ALL
        SELECT s.batch_id, sum({EXPECTED_COST}), 0 FROM slices s WHERE s.status = 'claimed' GROUP BY s.batch_id
    )
    SELECT b.id, b.model, b.service_class, b.tenant_id, b.status, b.pause_reason IS NOT NULL AS is_paused,
           b.pause_reason = '{PAUSED_BY_CLIENT}' AS is_paused_by_client,
           extract(epoch FROM b.expires_at - clock_timestamp()) AS seconds_left,
           extract(epoch FROM clock_timestamp()
                   - coalesce(b.paused_at, b.in_progress_at, b.created_at)) AS waited,
           coalesce(sum(l.cost), 0) AS cost, coalesce(sum(l.num_pending), 0) AS num_pending
    FROM batches b LEFT JOIN left_of l ON l.batch_id = b.id
    WHERE b.status IN ('validating', 'in_progress') GROUP BY b.id
""")  # noqa: S608 - constants
_CLAIMED: Final = text("""
    SELECT s.model, s.service_class,
           percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (
               ORDER BY greatest(0, extract(epoch FROM a.started_at - coalesce(b.in_progress_at, b.created_at)))
           ) AS waits
    FROM attempts a JOIN slices s ON s.id = a.slice_id JOIN batches b ON b.id = s.batch_id
    WHERE a.started_at > now() - interval '15 minutes' GROUP BY s.model, s.service_class
""")
_QUANTILES: Final = ("0.5", "0.95")

#: A model and a service class.
_Kind = tuple[str, str]


class WaitingSection:
    def __init__(self, tenants: TopTenants) -> None:
        self._tenants = tenants

    def read(self, conn: Connection) -> Values:
        batches = conn.execute(_BATCHES, weights_of(get_settings())).all()
        loads = {
            model: load_of(conn, model)
            for model in sorted({one.model for one in batches if one.cost or one.num_pending})
        }
        waits: dict[tuple[str, str], float] = defaultdict(float)
        for batch in batches:
            if (cause := _cause(batch, loads)) is not None:
                label = self._tenants.label(batch.tenant_id), cause
                waits[label] = max(waits[label], float(batch.waited))
        kinds = list(product(sorted({*served_models(conn), *loads}), ServiceClass))
        gaps = [
            ((model, str(service_class)), _gap(loads[model].queues, service_class) if model in loads else 0.0)
            for model, service_class in kinds
        ]
        least, num_late = _slack(batches, loads)
        return {
            names.TENANT_WAIT: list(waits.items()),
            names.SERVICE_GAP: gaps,
            names.SLICE_WAIT: [
                ((row.model, row.service_class, quantile), float(wait))
                for row in conn.execute(_CLAIMED)
                for quantile, wait in zip(_QUANTILES, row.waits, strict=True)
            ],
            names.DEADLINE_SLACK: list(least.items()),
            names.AT_RISK: [((model, str(kind)), float(num_late[model, str(kind)])) for model, kind in kinds],
        }


def _cause(batch: Any, loads: dict[str, Load]) -> str | None:
    """What a batch waits for, in the words of `WaitReason`; the full explanation is `GET /v1/batches/{id}/explain`."""
    if batch.status == "validating":
        return "preparing"
    if batch.is_paused:
        return "paused" if batch.is_paused_by_client else "budget"
    if not batch.num_pending:
        return None
    load = loads[batch.model]
    if not load.num_ready:
        return "cold_start" if load.num_starting else "no_group"
    service_class = ServiceClass(batch.service_class)
    waiting = [queue for queue in load.queues if queue.num_pending]
    if any(CLASS_ORDER[queue.service_class] < CLASS_ORDER[service_class] for queue in waiting):
        return "class_ahead"
    mine = load.queue_of(batch.tenant_id, service_class)
    if any(queue.service_class is service_class and queue.counter < mine.counter for queue in waiting):
        return "share_ahead"
    return "engines_full"


def _gap(queues: Iterable[Queue], service_class: ServiceClass) -> float:
    counters = [queue.counter for queue in queues if queue.service_class is service_class and queue.num_pending]
    return float(max(counters) - min(counters)) if counters else 0.0


def _slack(batches: Sequence[Any], loads: dict[str, Load]) -> tuple[dict[_Kind, float], Counter[_Kind]]:
    """The least of each class, and how many batches have less than none: all work that is due before a batch, or with
    it, has to be done by its deadline.

    Where nobody knows how fast a model's groups are, or there are none, it is the time that is left.
    """
    least: dict[tuple[str, str], float] = {}
    num_late: Counter[tuple[str, str]] = Counter()
    due: dict[str, Decimal] = defaultdict(Decimal)
    for batch in sorted(batches, key=lambda one: (one.seconds_left, one.id)):
        if not batch.cost or batch.is_paused:  # the window of one that is paused stands still
            continue
        due[batch.model] += batch.cost
        speed = loads[batch.model].speed
        slack = float(batch.seconds_left) - (float(due[batch.model] / speed) if speed else 0.0)
        key = batch.model, batch.service_class
        least[key] = min(slack, least.get(key, slack))
        num_late[key] += slack < 0
    return least, num_late
