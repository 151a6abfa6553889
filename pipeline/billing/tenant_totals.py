"""What tenants used and what it cost, side by side: for operators, who see all of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

# By the key of the roll-ups, one tenant after the other: they are many rows, and a span is few of them.
_TOTALS: Final = text("""
    SELECT t.id AS tenant_id, t.name AS tenant, u.currency, u.num_requests, u.num_input_tokens, u.num_output_tokens,
           CASE WHEN u.currency IS NOT NULL THEN u.amount END AS amount
    FROM tenants t CROSS JOIN LATERAL (
        SELECT nullif(currency, '') AS currency,
               coalesce(sum(num_events) FILTER (WHERE meter = 'output'), 0)::bigint AS num_requests,
               coalesce(sum(quantity) FILTER (WHERE meter <> 'output'), 0)::bigint AS num_input_tokens,
               coalesce(sum(quantity) FILTER (WHERE meter = 'output'), 0)::bigint AS num_output_tokens,
               sum(amount) AS amount
        FROM usage_rollups r
        WHERE r.tenant_id = t.id AND r.period = 'day' AND r.starts_at >= :starts_at AND r.starts_at < :ends_at
        GROUP BY 1 HAVING sum(num_events) <> 0
    ) u
    ORDER BY u.num_input_tokens + u.num_output_tokens DESC, t.name, u.currency
    LIMIT :limit
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantTotal:
    """Of one tenant and currency."""

    tenant_id: str
    tenant: str
    num_requests: int
    num_input_tokens: int
    num_output_tokens: int
    #: None for usage that has no price: it is not free.
    currency: str | None
    amount: Decimal | None


def tenant_totals(session: Session, starts_at: datetime, ends_at: datetime, limit: int = 50) -> list[TenantTotal]:
    """Of whole days in UTC; who used most comes first. One who used nothing is left out."""
    values = {"starts_at": starts_at, "ends_at": ends_at, "limit": limit}
    return [TenantTotal(**row._mapping) for row in session.execute(_TOTALS, values)]
