"""Roll-ups: usage by hour and by day, added up in the transaction that writes the events.

They hold what the events say, at every moment and in every snapshot. Where they differ is their drift: found
by `find_drift`, set right by `correct_drift` and `rebuild`, and never there unless rows were changed by hand, or
written by processes of a version before roll-ups.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from psycopg import Cursor
from sqlalchemy import Connection, Engine, text

from pipeline.billing.charges_by_slice import SliceCharge
from pipeline.billing.pricing import ZERO
from pipeline.billing.reports import Month
from pipeline.tables.arrays import numbers, words
from pipeline.tables.billing import Meter
from pipeline.tables.session import connection

#: Rows of one meter, key and hour that groups can add to side by side.
NUM_SHARDS: Final = 8

_KEY: Final = "period, starts_at, tenant_id, project_id, api_key_id, model, service_class, meter, currency"
_SUMS: Final = "num_events, quantity, engine_ms, amount"
_PERIODS: Final = "(VALUES ('hour'), ('day')) AS p (period)"

#: What has no project is of the tenant's default one.
_EVENT_KEY: Final = """
    u.tenant_id, coalesce(u.project_id, 'proj_' || md5(u.tenant_id)) AS project_id, u.api_key_id, u.model,
    u.service_class, u.meter, coalesce(u.currency, '') AS currency
"""

# Keys are sorted, so that no two transactions wait for each other's rows. Events are of the moment at which their
# transaction began.
_ADD: Final = f"""
    WITH added AS (
        SELECT s.tenant_id, coalesce(b.project_id, 'proj_' || md5(s.tenant_id)) AS project_id, b.api_key_id, s.model,
               b.service_class, o.meter, o.currency, mod(abs(hashtext(s.group_id)::bigint), {NUM_SHARDS}) AS shard,
               sum(o.num_events) AS num_events, sum(o.quantity) AS quantity, sum(o.engine_ms) AS engine_ms,
               sum(o.amount) AS amount
        FROM unnest(%(slice_ids)s::bigint[], %(meters)s::text[], %(currencies)s::text[], %(num_events)s::bigint[],
                    %(quantities)s::bigint[], %(engine_ms)s::bigint[], %(amounts)s::numeric[])
            AS o (slice_id, meter, currency, num_events, quantity, engine_ms, amount)
        JOIN slices s ON s.id = o.slice_id JOIN batches b ON b.id = s.batch_id
        GROUP BY s.tenant_id, b.project_id, b.api_key_id, s.model, b.service_class, o.meter, o.currency, s.group_id
    )
    INSERT INTO usage_rollups ({_KEY}, shard, {_SUMS})
    SELECT p.period, date_trunc(p.period, now(), 'UTC') AS starts_at, tenant_id, project_id, api_key_id, model,
           service_class, meter, currency, shard, {_SUMS}
    FROM added, {_PERIODS}
    ORDER BY {_KEY}, shard
    ON CONFLICT ON CONSTRAINT pk_usage_rollups DO UPDATE
    SET num_events = usage_rollups.num_events + excluded.num_events,
        quantity = usage_rollups.quantity + excluded.quantity,
        engine_ms = usage_rollups.engine_ms + excluded.engine_ms, amount = usage_rollups.amount + excluded.amount
"""  # noqa: S608 - constants


def _drift(condition: str) -> str:
    """What roll-ups lack, and have too much of where it is negative; `condition` is on `tenant_id` and `at`."""
    return f"""
        SELECT {_KEY}, sum(num_events)::bigint AS num_events, sum(quantity)::bigint AS quantity,
               sum(engine_ms)::bigint AS engine_ms, sum(amount) AS amount
        FROM (
            SELECT p.period, date_trunc(p.period, at, 'UTC') AS starts_at, tenant_id, project_id, api_key_id, model,
                   service_class, meter, currency, {_SUMS}
            FROM (
                SELECT {_EVENT_KEY}, u.occurred_at AS at, 1 AS num_events, u.quantity, u.engine_ms,
                       coalesce(u.amount, 0) AS amount
                FROM (SELECT *, occurred_at AS at FROM rated_usage) u WHERE {condition}
                UNION ALL
                SELECT tenant_id, project_id, api_key_id, model, service_class, meter, currency, at, {_SUMS}
                FROM (SELECT *, starts_at AS at FROM archived_usage) a WHERE {condition}
            ) AS used, {_PERIODS}
            UNION ALL
            SELECT {_KEY}, - num_events, - quantity, - engine_ms, - amount
            FROM (SELECT *, starts_at AS at FROM usage_rollups) r WHERE {condition}
        ) AS both_sides
        GROUP BY {_KEY}
        HAVING (sum(num_events), sum(quantity), sum(engine_ms), sum(amount)) <> (0, 0, 0, 0)
    """  # noqa: S608 - constants


#: For the audit: all of it, in one query.
DRIFT: Final = _drift("true")
_DRIFT_OF_SPAN: Final = _drift("tenant_id = :tenant_id AND at >= :starts_at AND at < :ends_at")

# One statement, and so one snapshot: in it events and roll-ups of every other transaction are both there or both not.
# What is wrong is made up for in one shard. So rows may be negative, and sums that are 0 stay: to delete rows that
# groups may be adding to would lose what they add.
_CORRECT: Final = text(f"""
    INSERT INTO usage_rollups ({_KEY}, shard, {_SUMS})
    SELECT {_KEY}, 0, {_SUMS} FROM ({_DRIFT_OF_SPAN}) AS drift ORDER BY {_KEY}
    ON CONFLICT ON CONSTRAINT pk_usage_rollups DO UPDATE
    SET num_events = usage_rollups.num_events + excluded.num_events,
        quantity = usage_rollups.quantity + excluded.quantity,
        engine_ms = usage_rollups.engine_ms + excluded.engine_ms, amount = usage_rollups.amount + excluded.amount
""")  # noqa: S608 - constants
# Two who correct the same drift would correct it twice.
_LOCK: Final = text("SELECT pg_advisory_xact_lock(hashtext('usage_rollups'), hashtext(:tenant_id))")

_SPAN: Final = text("""
    SELECT min(at) AS first, max(at) AS last FROM (
        (SELECT occurred_at AS at FROM usage_events WHERE tenant_id = :tenant_id ORDER BY occurred_at LIMIT 1)
        UNION ALL
        (SELECT occurred_at FROM usage_events WHERE tenant_id = :tenant_id ORDER BY occurred_at DESC LIMIT 1)
        UNION ALL
        (SELECT created_at FROM results WHERE tenant_id = :tenant_id ORDER BY created_at LIMIT 1)
        UNION ALL
        (SELECT created_at FROM results WHERE tenant_id = :tenant_id ORDER BY created_at DESC LIMIT 1)
        UNION ALL SELECT min(starts_at) FROM usage_rollups WHERE tenant_id = :tenant_id
        UNION ALL SELECT max(starts_at) FROM usage_rollups WHERE tenant_id = :tenant_id
        UNION ALL SELECT min(starts_at) FROM archived_usage WHERE tenant_id = :tenant_id
        UNION ALL SELECT max(starts_at) FROM archived_usage WHERE tenant_id = :tenant_id
    ) AS ends
""")
#: Later than anything that is used.
_NEVER: Final = datetime(9999, 1, 1, tzinfo=UTC)
_TENANTS: Final = text("SELECT id FROM tenants ORDER BY id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """By how much the roll-up of a key falls short of its events; negative where it has too much."""

    period: str
    starts_at: datetime
    tenant_id: str
    project_id: str
    api_key_id: str
    model: str
    service_class: str
    meter: str
    currency: str
    num_events: int
    quantity: int
    engine_ms: int
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Rebuilt:
    num_months: int
    #: Keys of roll-ups that were wrong.
    num_corrected: int


def add_usage(cursor: Cursor[Any], charges: Iterable[SliceCharge]) -> None:
    """Add what was just charged, in the transaction of `cursor`, to the roll-ups.

    The last thing in the transaction, since it locks rows that other groups of the tenant may want. Waits for no
    answer, so that it can be part of a pipeline.
    """
    added = [(charge, meter) for charge in charges for meter in charge.num_tokens]
    if not added:
        return
    cursor.execute(
        _ADD,
        {
            "slice_ids": numbers(charge.slice_id for charge, _ in added),
            "meters": words(meter.value for _, meter in added),
            "currencies": words(charge.currency or "" for charge, _ in added),
            "num_events": numbers(charge.num_events[meter] for charge, meter in added),
            "quantities": numbers(charge.num_tokens[meter] for charge, meter in added),
            "engine_ms": numbers(charge.engine_ms if meter is Meter.OUTPUT else 0 for charge, meter in added),
            "amounts": numbers(charge.amounts.get(meter, ZERO) for charge, meter in added),
        },
    )


def find_drift(conn: Connection, tenant_id: str, starts_at: datetime, ends_at: datetime) -> list[Drift]:
    """Where roll-ups and events of a span differ. The span begins and ends with a day in UTC."""
    values = {"tenant_id": tenant_id, "starts_at": starts_at, "ends_at": ends_at}
    return [Drift(**row._mapping) for row in conn.execute(text(_DRIFT_OF_SPAN), values)]


def correct_drift(conn: Connection, tenant_id: str, starts_at: datetime, ends_at: datetime) -> int:
    """Have the roll-ups of a span say what its events say by now; returns how many keys were wrong.

    For whoever changes prices of events that are there, in the same transaction: their roll-ups drift by as much.
    Groups may go on recording. The span begins and ends with a day in UTC.
    """
    values = {"tenant_id": tenant_id, "starts_at": starts_at, "ends_at": ends_at}
    conn.execute(_LOCK, {"tenant_id": tenant_id})
    return conn.execute(_CORRECT, values).rowcount


def correct_recent_drift(engine: Engine | None = None, *, since: datetime) -> int:
    """The same for all tenants, from a day in UTC on."""
    with connection(engine) as conn:
        tenant_ids = list(conn.scalars(_TENANTS))
    num_corrected = 0
    for tenant_id in tenant_ids:
        with connection(engine) as conn:
            num_corrected += correct_drift(conn, tenant_id, since, _NEVER)
    return num_corrected


def rebuild(engine: Engine | None = None, *, tenant_id: str | None = None) -> Rebuilt:
    """Have all roll-ups say what the events say, beside groups that record; a transaction for each tenant and month."""
    with connection(engine) as conn:
        tenant_ids = list(conn.scalars(_TENANTS)) if tenant_id is None else [tenant_id]
    num_months = num_corrected = 0
    for owner in tenant_ids:
        with connection(engine) as conn:
            span = conn.execute(_SPAN, {"tenant_id": owner}).one()
        if span.first is None:
            continue
        month = Month.of(span.first)
        while month.start <= span.last:
            with connection(engine) as conn:
                conn.execute(text("SET LOCAL statement_timeout = 0"))  # as long as the month has events
                num_corrected += correct_drift(conn, owner, month.start, month.end)
            num_months += 1
            month = Month.of(month.end)
    return Rebuilt(num_months, num_corrected)
