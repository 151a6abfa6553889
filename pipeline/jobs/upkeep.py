"""What is done once a day: partitions for the months to come, roll-ups set right, and old months dropped."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy import Engine

from pipeline.billing.rollups import correct_recent_drift
from pipeline.jobs.partitioning import make_partitions
from pipeline.jobs.retention import drop_old_months

log = structlog.get_logger(__name__)


def keep_up(engine: Engine | None = None) -> dict[str, int]:
    """Safe if two do it at once; returns how much was done."""
    num_made = make_partitions(engine)
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    num_corrected = correct_recent_drift(engine, since=today - timedelta(days=1))
    if num_corrected:
        # As by processes of a version before roll-ups, while this version was rolled out.
        log.warning("roll-ups were wrong, and are right now", num_rollups=num_corrected)
    num_dropped = 0
    for month in drop_old_months(engine):
        if month.kept_because is None:
            num_dropped += 1
            log.info("a month was dropped", month=month.name, num_requests=month.num_requests)
        else:
            log.warning("an old month is kept", month=month.name, reason=month.kept_because)
    return {"months_made": num_made, "rollups_corrected": num_corrected, "months_dropped": num_dropped}
