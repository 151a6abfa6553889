"""Invoices that make themselves: at the end of a month each tenant that used anything gets its drafts."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import structlog
from sqlalchemy import Engine, text

from pipeline.billing.invoices import create_invoices, database_now
from pipeline.billing.reports import Month
from pipeline.errors import UserError
from pipeline.tables.session import transaction
from pipeline.tables.usage_views import HAS_USED

log = structlog.get_logger(__name__)

#: Days of a month in which the invoices of the one before are looked for.
_DAYS: Final = 7

# By index, tenant by tenant: the answers of a month can be millions. Of whoever was billed before there may be
# corrections. Who has a draft that was made while the month ran may have used another currency since.
_TENANTS: Final = text(f"""
    SELECT t.id FROM tenants t
    WHERE NOT EXISTS (
        SELECT FROM invoices i
        WHERE i.tenant_id = t.id AND i.month_start = :month AND i.status IN ('collecting', 'final')
    )
    AND (
        {HAS_USED}
        OR EXISTS (SELECT FROM contracts c WHERE c.tenant_id = t.id AND c.commitment IS NOT NULL)
        OR EXISTS (SELECT FROM credit_notes n WHERE n.tenant_id = t.id AND n.created_at < :end)
        OR EXISTS (SELECT FROM invoices i WHERE i.tenant_id = t.id AND i.status = 'final')
    )
    ORDER BY t.id
""")  # noqa: S608 — all of it is ours
_COLLECT: Final = text("UPDATE invoices SET status = 'collecting' WHERE status = 'draft' AND month_start < :month")


def draft_invoices(engine: Engine | None = None, now: datetime | None = None) -> int:
    """Make the invoices of the month before that are missing, in the first days of a month.

    Drafts of months that are over begin to collect. Returns how many of the month before are collecting anew. Safe at
    any time, and from any number of callers. A tenant whose invoices can't be made does not keep others from theirs: it
    is logged, and tried again the next time.
    """
    with transaction(engine) as session:
        now = now or database_now(session)
        this_month = Month.of(now)
        month = Month.of(this_month.start - timedelta(days=1))
        is_early = now < this_month.start + timedelta(days=_DAYS)
        session.execute(_COLLECT, {"month": (month if is_early else this_month).start.date()})
        if not is_early:
            return 0
        values = {"month": month.start.date(), "begin": month.start, "end": month.end}
        tenants = session.scalars(_TENANTS, values).all()
    num_invoices = 0
    for tenant_id in tenants:
        try:
            with transaction(engine) as session:
                num_invoices += len(create_invoices(session, tenant_id, month, now))
        except UserError as error:
            log.error("invoices not drafted", tenant=tenant_id, month=str(month), reason=str(error))
    return num_invoices
