"""Waste: work of an attempt that came to nothing, with its cause. The operator's own; it is never billed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, cast

import psycopg
from psycopg import Cursor
from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from pipeline.tables.rates import WasteCause

if TYPE_CHECKING:
    from pipeline.jobs.claiming import ClaimedSlice


@dataclass(frozen=True, slots=True)
class WastePart:
    """What came to nothing for one cause."""

    cause: WasteCause
    num_tokens: int
    #: Share of the engine's time, in milliseconds; None where nobody knows.
    engine_ms: int | None = None


_INSERT: Final = """
    INSERT INTO waste (slice_id, lease_epoch, batch_id, tenant_id, model, group_id, cause, num_tokens, engine_ms)
    SELECT * FROM unnest(%(slice_ids)b::bigint[], %(epochs)b::bigint[], %(batch_ids)b::text[], %(tenant_ids)b::text[],
                         %(models)b::text[], %(group_ids)b::text[], %(causes)b::text[], %(tokens)b::bigint[],
                         %(engine_ms)b::bigint[])
"""

# Of an attempt whose lease is gone, which nobody else counts for.
_COUNT_LOST: Final = text("""
    UPDATE attempts SET num_wasted_tokens = num_wasted_tokens + :num_tokens
    WHERE slice_id = :slice_id AND lease_epoch = :epoch
""")


def thrown_away(parts: Sequence[WastePart]) -> int:
    """Tokens of them that `attempts.num_wasted_tokens` counts: all but what was there and was computed again."""
    return sum(part.num_tokens for part in parts if part.cause is not WasteCause.RECOMPUTED)


def add_waste(cursor: Cursor[Any], wasted: Sequence[tuple[ClaimedSlice, WastePart]]) -> None:
    """Write the waste of attempts. Waits for no answer, so that it can be part of a pipeline."""
    if not wasted:
        return
    cursor.execute(
        _INSERT,
        {
            "slice_ids": [claimed.id for claimed, _ in wasted],
            "epochs": [claimed.lease_epoch for claimed, _ in wasted],
            "batch_ids": [claimed.batch_id for claimed, _ in wasted],
            "tenant_ids": [claimed.tenant_id for claimed, _ in wasted],
            "models": [claimed.model for claimed, _ in wasted],
            "group_ids": [claimed.group_id for claimed, _ in wasted],
            "causes": [part.cause.value for _, part in wasted],
            "tokens": [part.num_tokens for _, part in wasted],
            "engine_ms": [part.engine_ms for _, part in wasted],
        },
    )


def add_waste_of(conn: Connection, claimed: ClaimedSlice, parts: Sequence[WastePart]) -> None:
    """Write the waste of one attempt, in the caller's transaction."""
    driver = cast("psycopg.Connection[Any]", conn.connection.driver_connection)
    with driver.cursor() as cursor:
        add_waste(cursor, [(claimed, part) for part in parts])


def record_lost(conn: Connection, wasted: Sequence[tuple[ClaimedSlice, WastePart]]) -> None:
    """Write what a group computed for slices whose leases it had lost by then, and count it on those attempts."""
    for claimed, part in wasted:
        add_waste_of(conn, claimed, [part])
        values = {"num_tokens": thrown_away([part]), "slice_id": claimed.id, "epoch": claimed.lease_epoch}
        conn.execute(_COUNT_LOST, values)


@dataclass(frozen=True, slots=True)
class WasteLine:
    """What came to nothing for a tenant and model by one cause."""

    tenant: str
    model: str
    cause: WasteCause
    num_tokens: int
    #: As far as it is known.
    engine_ms: int


_REPORT: Final = text("""
    SELECT t.name AS tenant, w.model, w.cause, sum(w.num_tokens)::bigint AS num_tokens,
           coalesce(sum(w.engine_ms), 0)::bigint AS engine_ms
    FROM waste w JOIN tenants t ON t.id = w.tenant_id
    WHERE w.created_at >= :starts_at AND w.created_at < :ends_at
      AND (CAST(:tenant_id AS text) IS NULL OR w.tenant_id = :tenant_id)
    GROUP BY t.name, w.model, w.cause ORDER BY t.name, w.model, w.cause
""")


def waste_report(
    session: Session, starts_at: datetime, ends_at: datetime, *, tenant_id: str | None = None
) -> list[WasteLine]:
    """The waste of a span by tenant, model and cause."""
    values = {"starts_at": starts_at, "ends_at": ends_at, "tenant_id": tenant_id}
    return [
        WasteLine(row.tenant, row.model, WasteCause(row.cause), row.num_tokens, row.engine_ms)
        for row in session.execute(_REPORT, values)
    ]
