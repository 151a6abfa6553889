"""What webhooks tell: that a batch has ended. Types and payload are those of OpenAI.

An event is written in the transaction that ends the batch: neither is there without the other.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Final

import orjson
from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from pipeline.celery import CONTROL_QUEUE, DELIVER
from pipeline.ids import new_id
from pipeline.jobs import outbox
from pipeline.tables import BatchStatus

#: How long it is tried to deliver an event.
PATIENCE: Final = timedelta(hours=72)
#: Events are forgotten after so long, with the log of their deliveries.
KEPT: Final = timedelta(days=30)


class EventType(StrEnum):
    BATCH_COMPLETED = "batch.completed"
    BATCH_FAILED = "batch.failed"
    BATCH_EXPIRED = "batch.expired"
    BATCH_CANCELLED = "batch.cancelled"


_TYPES: Final = {
    BatchStatus.COMPLETED: EventType.BATCH_COMPLETED,
    BatchStatus.FAILED: EventType.BATCH_FAILED,
    BatchStatus.EXPIRED: EventType.BATCH_EXPIRED,
    BatchStatus.CANCELLED: EventType.BATCH_CANCELLED,
}

# The endpoints are locked against being deleted, so that no batch fails to end because of one that just was. A batch
# without a project is of the default one: see `default_project_id`.
_ADD: Final = text("""
    WITH wanted AS (
        SELECT e.id FROM webhook_endpoints e JOIN batches b ON b.id = :batch_id AND b.tenant_id = e.tenant_id
        WHERE e.disabled_at IS NULL AND CAST(:type AS text) = ANY(e.event_types)
          AND (e.project_id IS NULL OR e.project_id = coalesce(b.project_id, 'proj_' || md5(b.tenant_id)))
        FOR KEY SHARE OF e
    ), event AS (
        INSERT INTO webhook_events (id, tenant_id, type, batch_id)
        SELECT :event_id, tenant_id, :type, id FROM batches
        WHERE id = :batch_id AND EXISTS (SELECT FROM wanted) RETURNING id
    )
    INSERT INTO webhook_deliveries (id, event_id, endpoint_id, give_up_at)
    SELECT 'whd_' || replace(gen_random_uuid()::text, '-', ''), event.id, wanted.id, now() + :patience
    FROM event CROSS JOIN wanted
""")
_FORGET: Final = text("DELETE FROM webhook_events WHERE created_at < now() - CAST(:kept AS interval)")


def add_event(conn: Session | Connection, batch_id: str, status: BatchStatus) -> int:
    """Tell every endpoint that wants to know that a batch has ended so, in the transaction that ends it.

    Returns how many those are. Call `outbox.publish_soon` after the commit.
    """
    added = conn.execute(
        _ADD,
        {
            "batch_id": batch_id,
            "type": _TYPES[status].value,
            "event_id": new_id("evt"),
            "patience": PATIENCE,
        },
    )
    num_added: int = added.rowcount  # type: ignore[attr-defined]
    if num_added:
        outbox.add(conn, queue=CONTROL_QUEUE, task=DELIVER, args=[])
    return num_added


def payload_of(event_id: str, kind: str, batch_id: str, created_at: int) -> bytes:
    """The body of an event, of this moment in Unix seconds: the same bytes in every attempt."""
    return orjson.dumps(
        {
            "id": event_id,
            "object": "event",
            "created_at": created_at,
            "type": kind,
            "data": {"id": batch_id},
        }
    )


def forget_old_events(conn: Connection) -> int:
    """Remove events that have been kept for long enough, and what was noted of their deliveries."""
    return conn.execute(_FORGET, {"kept": KEPT}).rowcount
