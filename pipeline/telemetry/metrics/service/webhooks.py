"""Whether tenants hear of what has happened to their batches."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, text

from pipeline.telemetry.metrics import control_names as names
from pipeline.telemetry.metrics.service.reader import Values

_ENDPOINTS: Final = text("""
    SELECT count(*) FILTER (WHERE disabled_at IS NULL AND failing_since IS NULL) AS working,
           count(*) FILTER (WHERE disabled_at IS NULL AND failing_since IS NOT NULL) AS failing,
           count(*) FILTER (WHERE disabled_at IS NOT NULL) AS disabled
    FROM webhook_endpoints
""")
_PENDING: Final = text("""
    SELECT count(*) AS num, extract(epoch FROM clock_timestamp() - min(next_attempt_at)) AS overdue
    FROM webhook_deliveries WHERE status = 'pending'
""")


def read_webhooks(conn: Connection) -> Values:
    """How many endpoints answer, and what is yet to be sent. An attempt that was lost is due when its time is over."""
    endpoints = conn.execute(_ENDPOINTS).one()
    pending = conn.execute(_PENDING).one()
    return {
        names.WEBHOOK_ENDPOINTS: [((state,), float(num)) for state, num in endpoints._mapping.items()],
        names.WEBHOOKS_PENDING: [((), float(pending.num))],
        names.WEBHOOKS_OVERDUE: [((), max(0.0, float(pending.overdue or 0)))],
    }
