"""Credit: granted, spent and expired in the ledger, one account per grant.

What is spent is derived from what was used: whoever settles computes the whole of it again and posts the difference, so
that it may be done at any time, by anybody, any number of times.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Final

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from pipeline.billing.budgets import add_prepaid, lock_budgets, make_prepaid, take_prepaid
from pipeline.billing.contracts import ContractError, check_money
from pipeline.billing.credit_burning import Grant, Spent, boundaries, burn
from pipeline.billing.ledger import Account, Posting, post_entries
from pipeline.billing.pricing import EXACT, ZERO, exact_sum
from pipeline.billing.rate_cards import check_currency
from pipeline.ids import new_id
from pipeline.tables import Budget, CreditGrant
from pipeline.tenancy import audit_log

#: What began before an expiry may be committed after it; what is left expires in the books when nothing can be.
_SETTLING: Final = timedelta(hours=1)

_LOCK: Final = text("SELECT pg_advisory_xact_lock(hashtextextended('credit of ' || :tenant_id, 0))")

# By number of the last boundary before it, from 1. Grants pay for usage, not for other credits.
_USED: Final = text("""
    SELECT width_bucket(t.created_at, CAST(:moments AS timestamptz[])) AS interval, sum(e.amount) AS amount
    FROM ledger_accounts a
    JOIN ledger_entries e ON e.account_id = a.id
    JOIN ledger_transactions t ON t.id = e.transaction_id
    WHERE a.kind = 'receivable' AND a.tenant_id = :tenant_id AND a.currency = :currency AND a.grant_id IS NULL
      AND t.kind IN ('usage', 'adjustment')
    GROUP BY 1
""")

_POSTED: Final = text("""
    SELECT a.grant_id, t.kind, t.period, sum(e.amount) AS amount
    FROM ledger_accounts a
    JOIN ledger_entries e ON e.account_id = a.id
    JOIN ledger_transactions t ON t.id = e.transaction_id
    WHERE a.kind = 'credit' AND a.tenant_id = :tenant_id AND a.currency = :currency
    GROUP BY 1, 2, 3
""")

_SPENT_IN_MONTH: Final = text("""
    SELECT coalesce(-sum(e.amount), 0)
    FROM ledger_transactions t
    JOIN ledger_entries e ON e.transaction_id = t.id
    JOIN ledger_accounts a ON a.id = e.account_id
    WHERE t.tenant_id = :tenant_id AND t.kind = 'credit_spent' AND t.period = :period
      AND a.kind = 'receivable' AND a.currency = :currency
""")


def grant_credit(
    session: Session,
    tenant_id: str,
    *,
    amount: Decimal,
    currency: str,
    reason: str,
    priority: int = 100,
    expires_at: datetime | None = None,
) -> CreditGrant:
    """Give a tenant credit, which pays for what it uses from now on. Raises ContractError."""
    check_currency(currency)
    check_money("amount", amount)
    if not 0 <= priority <= 1000:
        raise ContractError(f"priority is {priority}: give a number from 0 (spent first) to 1000.")
    now = session.execute(select(func.clock_timestamp())).scalar_one()
    if expires_at is not None and expires_at <= now:
        raise ContractError(f"{expires_at.isoformat()} is past: credit that expired pays for nothing.")
    grant = CreditGrant(
        id=new_id("grant"),
        tenant_id=tenant_id,
        currency=currency,
        amount=amount,
        priority=priority,
        expires_at=expires_at,
        reason=reason,
        created_at=now,
    )
    session.add(grant)
    session.flush()
    post_entries(
        session,
        tenant_id=tenant_id,
        currency=currency,
        kind=Posting.GRANT,
        idempotency_key=f"grant:{grant.id}",
        entries=[
            (Account.GRANTED, None, None, amount),
            (Account.CREDIT, tenant_id, grant.id, amount.copy_negate()),
        ],
    )
    add_prepaid(session, tenant_id, currency, amount)
    audit_log.record(
        session,
        act="credit.grant",
        object=grant.id,
        details={"tenant": tenant_id, "amount": f"{amount:f} {currency}", "priority": priority, "reason": reason},
    )
    return grant


def credit_balance(session: Session, tenant_id: str, currency: str) -> Decimal:
    """What is left of a tenant's credit after all that was used; derived from the ledger, at most 0 behind it."""
    return exact_sum(credit_left(session, tenant_id, currency).values())


def credit_left(session: Session, tenant_id: str, currency: str) -> dict[str, Decimal]:
    """The same by grant, in the order in which they are spent; without those that expired."""
    now = session.execute(select(func.clock_timestamp())).scalar_one()
    grants = _grants(session, tenant_id, currency)
    spent = _totals(_spent(session, tenant_id, currency, grants, now))
    return {
        grant.id: EXACT.subtract(grant.amount, spent.get(grant.id, ZERO))
        for grant in sorted(grants, key=lambda grant: grant.burn_order)
        if grant.holds(now)
    }


def credit_spent(session: Session, tenant_id: str, currency: str, month: date) -> Decimal:
    """What credit has paid for usage of a month, as far as it is settled. `month` is its first day."""
    values = {"tenant_id": tenant_id, "currency": currency, "period": month}
    return Decimal(session.execute(_SPENT_IN_MONTH, values).scalar_one())


def settle_credit(session: Session, tenant_id: str, currency: str) -> Decimal:
    """Post what credit pays for all that was used so far, and what expired of it; returns what was newly paid."""
    session.execute(_LOCK, {"tenant_id": tenant_id})
    now = session.execute(select(func.clock_timestamp())).scalar_one()
    grants = _grants(session, tenant_id, currency)
    posted, expired = _posted(session, tenant_id, currency)
    spent = _spent(session, tenant_id, currency, grants, now, expired)
    due = {key: EXACT.subtract(spent.get(key, ZERO), posted.get(key, ZERO)) for key in spent.keys() | posted.keys()}
    for month in sorted({month for _, month in due}):
        _post_spent(session, tenant_id, currency, month, {g: due[g, m] for g, m in due if m == month and due[g, m]})
    totals = _totals(spent)
    for grant in grants:
        left = exact_sum(
            [grant.amount, totals.get(grant.id, ZERO).copy_negate(), expired.get(grant.id, ZERO).copy_negate()]
        )
        if grant.expires_at is not None and grant.expires_at <= now - _SETTLING and left:
            take_prepaid(session, tenant_id, currency, left, grant.expires_at)
            _post_expired(session, tenant_id, currency, grant.id, left)
    return exact_sum(due.values())


def limit_to_credit(session: Session, tenant_id: str, currency: str) -> Budget:
    """From now on the tenant costs no more than what is left of its credit, and what is granted later."""
    lock_budgets(session, tenant_id)
    return make_prepaid(session, tenant_id, currency, credit_balance(session, tenant_id, currency))


def tenants_with_credit(session: Session) -> Sequence[tuple[str, str]]:
    """Tenant and currency of whoever was ever granted any."""
    query = select(CreditGrant.tenant_id, CreditGrant.currency).distinct().order_by(CreditGrant.tenant_id)
    return [(row.tenant_id, row.currency) for row in session.execute(query)]


def list_grants(session: Session, tenant_id: str | None = None) -> Sequence[CreditGrant]:
    """By tenant, in the order of their grant."""
    query = select(CreditGrant).order_by(CreditGrant.tenant_id, CreditGrant.created_at, CreditGrant.id)
    if tenant_id is not None:
        query = query.where(CreditGrant.tenant_id == tenant_id)
    return session.execute(query).scalars().all()


def _grants(session: Session, tenant_id: str, currency: str) -> list[Grant]:
    return [
        Grant(grant.id, grant.amount, grant.priority, grant.created_at, grant.expires_at)
        for grant in list_grants(session, tenant_id)
        if grant.currency == currency
    ]


def _spent(
    session: Session,
    tenant_id: str,
    currency: str,
    grants: Sequence[Grant],
    now: datetime,
    expired: Mapping[str, Decimal] | None = None,
) -> Spent:
    moments = boundaries(grants, now)
    if not moments:
        return {}
    values = {"moments": moments, "tenant_id": tenant_id, "currency": currency}
    rows = session.execute(_USED, values).all()
    used = {moments[row.interval - 1]: row.amount for row in rows if row.interval > 0}
    # What expired in the books stays so.
    kept = [
        Grant(g.id, EXACT.subtract(g.amount, (expired or {}).get(g.id, ZERO)), g.priority, g.granted_at, g.expires_at)
        for g in grants
    ]
    return burn(kept, used)


def _posted(session: Session, tenant_id: str, currency: str) -> tuple[Spent, dict[str, Decimal]]:
    """What the ledger has as spent, and as expired."""
    spent: Spent = {}
    expired: dict[str, Decimal] = {}
    for row in session.execute(_POSTED, {"tenant_id": tenant_id, "currency": currency}):
        if row.kind == Posting.CREDIT_SPENT:
            spent[row.grant_id, row.period] = row.amount
        elif row.kind == Posting.CREDIT_EXPIRED:
            expired[row.grant_id] = row.amount
    return spent, expired


def _totals(spent: Spent) -> dict[str, Decimal]:
    parts: dict[str, list[Decimal]] = defaultdict(list)
    for (grant_id, _), amount in spent.items():
        parts[grant_id].append(amount)
    return {grant_id: exact_sum(amounts) for grant_id, amounts in parts.items()}


def _post_spent(session: Session, tenant_id: str, currency: str, month: date, paid: Mapping[str, Decimal]) -> None:
    if not paid:
        return
    post_entries(
        session,
        tenant_id=tenant_id,
        currency=currency,
        kind=Posting.CREDIT_SPENT,
        idempotency_key=f"credit spent:{new_id('spent')}",  # one at a time, under the lock
        period=month,
        entries=[
            (Account.RECEIVABLE, tenant_id, None, exact_sum(paid.values()).copy_negate()),
            *((Account.CREDIT, tenant_id, grant_id, amount) for grant_id, amount in sorted(paid.items())),
        ],
    )


def _post_expired(session: Session, tenant_id: str, currency: str, grant_id: str, left: Decimal) -> None:
    post_entries(
        session,
        tenant_id=tenant_id,
        currency=currency,
        kind=Posting.CREDIT_EXPIRED,
        idempotency_key=f"credit expired:{grant_id}",
        entries=[
            (Account.CREDIT, tenant_id, grant_id, left),
            (Account.EXPIRED, None, None, left.copy_negate()),
        ],
    )
