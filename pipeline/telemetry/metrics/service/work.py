"""What waits and what is at work: batches, slices, requests, messages."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Final

from sqlalchemy import Connection, text

from pipeline.celery import CONTROL_QUEUE, generate_queue
from pipeline.settings import get_settings
from pipeline.tables import GroupState
from pipeline.tables.batches import BatchStatus, ServiceClass
from pipeline.telemetry.metrics import control_names as names
from pipeline.telemetry.metrics.service.reader import Values

_MODELS: Final = text("SELECT name FROM served_models ORDER BY name")

# Two queries in one, so that each has its index of slices that are not done.
_SLICES: Final = text("""
    WITH found AS (
        SELECT model, service_class, batch_id, 'pending' AS state, count(*) AS slices, sum(num_unfinished) AS requests
        FROM slices WHERE status = 'pending' GROUP BY model, service_class, batch_id
        UNION ALL
        SELECT model, service_class, batch_id, 'claimed', count(*), sum(num_unfinished)
        FROM slices WHERE status = 'claimed' GROUP BY model, service_class, batch_id
    )
    SELECT f.model, f.service_class, f.state, sum(f.slices) AS slices, sum(f.requests) AS requests,
           extract(epoch FROM clock_timestamp() - min(coalesce(b.in_progress_at, b.created_at))
               FILTER (WHERE b.status = 'in_progress' AND b.pause_reason IS NULL)) AS age
    FROM found f JOIN batches b ON b.id = f.batch_id GROUP BY f.model, f.service_class, f.state
""")
_UNFINISHED: Final = ("validating", "in_progress", "finalizing", "cancelling")
_UNFINISHED_BATCHES: Final = text("""
    SELECT status, count(*) AS num, count(*) FILTER (WHERE pause_reason IS NOT NULL) AS num_paused FROM batches
    WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling') GROUP BY status
""")
_ALL_BATCHES: Final = text("""
    SELECT status, model, count(*) AS num, sum(num_succeeded) AS succeeded, sum(num_unsuccessful) AS unsuccessful,
           count(*) FILTER (WHERE status = 'expired' OR completed_at > expires_at) AS num_missed
    FROM batches GROUP BY status, model
""")
_OUTBOX: Final = text("""
    SELECT queue, count(*) AS num, extract(epoch FROM clock_timestamp() - min(created_at)) AS age
    FROM outbox GROUP BY queue
""")
_GROUPS: Final = text("""
    SELECT id, model, state, reason, extract(epoch FROM clock_timestamp() - heartbeat_at) AS age FROM groups
""")

#: A group that was lost is shown as such for so long, in seconds.
_LOST_SECONDS: Final = 3600.0
_SILENT: Final = "silent"


def served_models(conn: Connection) -> list[str]:
    return list(conn.scalars(_MODELS))


def read_slices(conn: Connection) -> Values:
    """Slices and requests without an outcome, and since when the oldest of them waits; 0 where there is none."""
    rows = {(row.model, row.service_class, row.state): row for row in conn.execute(_SLICES)}
    models = {*served_models(conn), *(model for model, _, _ in rows)}
    keys = list(product(sorted(models), _values(ServiceClass), ("pending", "claimed")))
    ages = [(key[:2], float(getattr(rows.get(key), "age", None) or 0)) for key in keys if key[2] == "pending"]
    return {
        names.SLICES: [(key, float(getattr(rows.get(key), "slices", 0))) for key in keys],
        names.REQUESTS: [(key, float(getattr(rows.get(key), "requests", 0))) for key in keys],
        names.OLDEST_PENDING: ages,
    }


def read_unfinished_batches(conn: Connection) -> Values:
    rows = {row.status: row for row in conn.execute(_UNFINISHED_BATCHES)}
    return {
        names.BATCHES: [((status,), float(rows[status].num if status in rows else 0)) for status in _UNFINISHED],
        names.BATCHES_PAUSED: [((), float(sum(row.num_paused for row in rows.values())))],
    }


def read_all_batches(conn: Connection) -> Values:
    """What only a look at all batches tells."""
    rows = conn.execute(_ALL_BATCHES).all()
    finished = [status for status in _values(BatchStatus) if status not in _UNFINISHED]
    counts = [((status,), float(sum(row.num for row in rows if row.status == status))) for status in finished]
    outcomes = [
        ((model, result), float(sum(getattr(row, result) for row in rows if row.model == model)))
        for model in sorted({row.model for row in rows if row.model is not None})
        for result in ("succeeded", "unsuccessful")
    ]
    return {
        names.BATCHES: counts,
        names.FINISHED_REQUESTS: outcomes,
        names.MISSED_WINDOWS: [((), float(sum(row.num_missed for row in rows)))],
    }


def read_outbox(conn: Connection) -> Values:
    rows = {row.queue: row for row in conn.execute(_OUTBOX)}
    queues = sorted({CONTROL_QUEUE, *map(generate_queue, served_models(conn)), *rows})
    return {
        names.OUTBOX_MESSAGES: [((queue,), float(rows[queue].num if queue in rows else 0)) for queue in queues],
        names.OUTBOX_AGE: [((), float(max((row.age for row in rows.values()), default=0)))],
    }


def read_groups(conn: Connection) -> Values:
    """Groups by state. One that has stopped has no series of its own any more, and is counted."""
    rows = conn.execute(_GROUPS).all()
    lease_seconds = get_settings().lease_seconds
    states = [*_values(GroupState), _SILENT]
    found = [(row.model, _shown_state(row.state, row.reason, float(row.age), lease_seconds)) for row in rows]
    models = sorted({*served_models(conn), *(model for model, _ in found)})
    return {
        names.GROUPS: [(key, float(found.count(key))) for key in product(models, states)],
        names.GROUP_HEARTBEAT_AGE: [
            ((row.id, row.model), float(row.age)) for row in rows if row.state != GroupState.STOPPED
        ],
    }


def _shown_state(state: str, reason: str | None, age: float, lease_seconds: float) -> str:
    if state == GroupState.STOPPED:
        # The sweeper gives a reason to those that it has not heard of for long.
        is_lost = reason is not None and "no heartbeat" in reason
        return _SILENT if is_lost and age < _LOST_SECONDS else state
    # One that loads its model has nothing to say for minutes.
    return _SILENT if age > lease_seconds and state != GroupState.STARTING else state


def _values(kind: Iterable[str]) -> list[str]:
    return [str(one) for one in kind]
