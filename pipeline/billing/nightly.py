"""What is done with the books every night: credit is settled, and everything held against everything else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from pipeline.billing.credits import settle_credit, tenants_with_credit
from pipeline.billing.currencies import decimal_text
from pipeline.billing.reconciliation import reconcile
from pipeline.billing.reports import Month
from pipeline.tables.session import transaction
from pipeline.telemetry.logs import summarize_error

log = structlog.get_logger(__name__)


def _open_months() -> list[Month]:
    this = Month.of(datetime.now(UTC))
    return [Month.of(this.start - timedelta(days=1)), this]


def look_at_books(engine: Engine | None = None) -> dict[str, int]:
    """Settle the credit of every tenant, and report where books differ, as errors. Returns how much of what.

    Of this month and the one before, which is still being collected or was just closed; `ryzanstein bill audit` looks
    at all. A tenant whose credit can't be settled now keeps nothing else from being done.
    """
    with transaction(engine) as session:
        owners = tenants_with_credit(session)
    num_settled = 0
    for tenant_id, currency in owners:
        try:
            with transaction(engine) as session:
                settle_credit(session, tenant_id, currency)
            num_settled += 1
        except DBAPIError as error:  # as while an invoice is issued; what is to be settled tonight can be tomorrow
            log.error("credit not settled", tenant=tenant_id, currency=currency, reason=summarize_error(error))
    found = reconcile(engine, months=_open_months())
    for drift in found.drifts:
        log.error(
            "the books differ; `ryzanstein bill audit` shows them",
            month=str(drift.month),
            tenant=drift.tenant_id,
            check=drift.check.name,
            drift=decimal_text(drift.amount),
            unit=drift.currency or drift.check.unit,
        )
    return {"months": len(found.months), "credits": num_settled, "drifts": len(found.drifts)}
