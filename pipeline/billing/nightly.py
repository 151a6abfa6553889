"""What is done with the books every night: credit is settled, and everything held against everything else."""

from __future__ import annotations

import structlog
from sqlalchemy import Engine

from pipeline.billing.credits import settle_credit, tenants_with_credit
from pipeline.billing.reconciliation import reconcile
from pipeline.tables.session import transaction

log = structlog.get_logger(__name__)


def look_at_books(engine: Engine | None = None) -> dict[str, int]:
    """Settle the credit of every tenant, and report where books differ, as errors. Returns how much of what."""
    with transaction(engine) as session:
        owners = tenants_with_credit(session)
    for tenant_id, currency in owners:
        with transaction(engine) as session:
            settle_credit(session, tenant_id, currency)
    found = reconcile(engine)
    for drift in found.drifts:
        log.error(
            "the books differ; `ryzanstein bill audit` shows them",
            month=str(drift.month),
            tenant=drift.tenant_id,
            check=drift.check.name,
            drift=f"{drift.amount:f}",
            unit=drift.currency or drift.check.unit,
        )
    return {"months": len(found.months), "credits": len(owners), "drifts": len(found.drifts)}
