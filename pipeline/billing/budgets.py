"""Budgets of tenants, projects and keys: set by the operator, read by both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

import structlog
from sqlalchemy import Engine, Update, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from pipeline.billing.contracts import fits_money
from pipeline.billing.currencies import decimal_text
from pipeline.billing.holds import LOCK_CLASS, PERIOD_START
from pipeline.billing.rate_cards import check_currency
from pipeline.errors import UserError
from pipeline.ids import new_id
from pipeline.tables import Budget, BudgetPeriod, BudgetUse
from pipeline.tables.session import connection
from pipeline.tenancy import audit_log

log = structlog.get_logger(__name__)

#: Parts of a budget, in percent, at which it alerts, once in a period each.
THRESHOLDS: Final = (80, 100)

# The month so far is read from what was rated, in the same transaction in which nobody records for the tenant.
_SPENT_THIS_MONTH: Final = text("""
    INSERT INTO budget_uses AS u (budget_id, period_start, spent)
    SELECT :budget_id, CAST(date_trunc('month', now() AT TIME ZONE 'UTC') AS date), coalesce(sum(amount), 0)
    FROM usage_prices
    WHERE tenant_id = :tenant_id AND revision = 1 AND currency = :currency
      AND occurred_at >= date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'
      AND (CAST(:project_id AS text) IS NULL OR project_id = :project_id)
      AND (CAST(:api_key_id AS text) IS NULL OR api_key_id = :api_key_id)
    ON CONFLICT (budget_id, period_start) DO NOTHING
""")
_INHERIT_USES: Final = text("""
    INSERT INTO budget_uses (budget_id, period_start, spent, alerted_percent)
    SELECT :new_id, period_start, spent, alerted_percent FROM budget_uses WHERE budget_id = :old_id
""")
_USES: Final = text(f"""
    SELECT g.id, coalesce(u.spent, 0) AS spent, coalesce(u.held, 0) AS held
    FROM budgets g LEFT JOIN budget_uses u ON u.budget_id = g.id AND u.period_start = {PERIOD_START}
    WHERE g.id = ANY(:budget_ids)
""")  # noqa: S608 - a constant
_ALERT: Final = text(f"""
    WITH due AS (
        SELECT u.budget_id, u.period_start, max(threshold) AS percent
        FROM budgets g JOIN budget_uses u ON u.budget_id = g.id AND u.period_start = {PERIOD_START}
        CROSS JOIN unnest(CAST(:thresholds AS int[])) AS threshold
        WHERE u.spent * 100 >= g.amount * threshold AND u.alerted_percent < threshold
        GROUP BY u.budget_id, u.period_start
        ORDER BY u.budget_id, u.period_start
    )
    UPDATE budget_uses u SET alerted_percent = due.percent FROM due, budgets g
    WHERE u.budget_id = due.budget_id AND u.period_start = due.period_start AND g.id = u.budget_id
    RETURNING g.id, g.tenant_id, due.percent, u.spent, g.amount, g.currency
""")  # noqa: S608 - a constant
_LOCK_HELD_SLICES: Final = text("""
    SELECT id FROM slices WHERE id IN (SELECT slice_id FROM holds WHERE budget_id = :budget_id)
    ORDER BY id FOR NO KEY UPDATE
""")
_HELD_SLICES: Final = text("SELECT slice_id FROM holds WHERE budget_id = :budget_id")
_LOCK_PERIODS: Final = text("""
    SELECT FROM budget_uses WHERE budget_id = :budget_id ORDER BY period_start FOR UPDATE
""")
#: How often what goes with a budget that is removed is looked for.
_MAX_LOOKS: Final = 20


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Whose costs a budget is for: of a tenant, or of one of its projects or keys."""

    tenant_id: str
    project_id: str | None = None
    api_key_id: str | None = None


@dataclass(frozen=True, slots=True)
class BudgetState:
    """A budget and the present period of it."""

    budget: Budget
    spent: Decimal
    held: Decimal

    @property
    def room(self) -> Decimal:
        return self.budget.amount - self.spent - self.held


def set_budget(
    session: Session,
    scope: Scope,
    *,
    currency: str,
    amount: Decimal,
    is_hard: bool = True,
    period: BudgetPeriod = BudgetPeriod.MONTH,
    actor: str | None = None,
) -> Budget:
    """Make or change the budget of a scope; what the present month has cost so far counts.

    A budget without end counts from now on. What is claimed already is finished where a limit is new or lowered.
    `actor` is who sets it, for the audit log.
    Raises UserError for an amount that is none.
    """
    if not fits_money(amount):
        raise UserError(f"{amount} is no amount of a budget: give a number from 0 on, with at most 15 decimals.")
    check_currency(currency)
    lock_budgets(session, scope.tenant_id)
    row = {
        "id": new_id("budget"),
        "tenant_id": scope.tenant_id,
        "project_id": scope.project_id,
        "api_key_id": scope.api_key_id,
        "currency": currency,
        "period": period,
        "amount": amount,
        "is_hard": is_hard,
        "is_prepaid": False,
    }
    statement = insert(Budget).values(row)
    statement = statement.on_conflict_do_update(
        index_elements=["tenant_id", "project_id", "api_key_id", "batch_id", "currency", "period", "is_prepaid"],
        set_={"amount": amount, "is_hard": is_hard},
    )
    budget_id = session.execute(statement.returning(Budget.id)).scalar_one()
    if period is BudgetPeriod.MONTH:
        session.execute(
            _SPENT_THIS_MONTH,
            {
                "budget_id": budget_id,
                "tenant_id": scope.tenant_id,
                "project_id": scope.project_id,
                "api_key_id": scope.api_key_id,
                "currency": currency,
            },
        )
    # Whatever was alerted is news again where the limit is another.
    session.execute(update(BudgetUse).where(BudgetUse.budget_id == budget_id).values(alerted_percent=0))
    _log(session, "budget.set", budget_id, amount, currency, is_hard, actor)
    return session.get_one(Budget, budget_id, populate_existing=True)


def limit_batch(session: Session, tenant_id: str, batch_id: str, currency: str, max_cost: Decimal) -> None:
    """The budget of one batch that no client can raise; of one that has cost nothing yet."""
    session.add(
        Budget(
            id=new_id("budget"),
            tenant_id=tenant_id,
            batch_id=batch_id,
            currency=currency,
            period=BudgetPeriod.TOTAL,
            amount=max_cost,
            is_hard=True,
            is_prepaid=False,
        )
    )
    session.flush()


def add_prepaid(session: Session, tenant_id: str, currency: str, amount: Decimal) -> None:
    """Raise what a prepaid tenant may cost by credit that it was granted. Does nothing for another tenant."""
    lock_budgets(session, tenant_id)  # whoever is making the tenant prepaid has not seen the grant
    session.execute(_prepaid(tenant_id, currency).values(amount=Budget.amount + amount))


def take_prepaid(session: Session, tenant_id: str, currency: str, amount: Decimal, expired_at: datetime) -> None:
    """Lower it by what was left of credit that expired at this moment, never below zero.

    A tenant that was made prepaid later never had that credit in its budget.
    """
    was_in_it = Budget.created_at < expired_at
    lowered = func.greatest(Budget.amount - amount, 0)
    session.execute(_prepaid(tenant_id, currency).where(was_in_it).values(amount=lowered))


def make_prepaid(session: Session, tenant_id: str, currency: str, balance: Decimal) -> Budget:
    """From now on the tenant costs no more than its `balance` and what is granted later.

    A balance that depends on what is recorded, or granted, is to be read after `lock_budgets`.
    """
    lock_budgets(session, tenant_id)
    of_tenant = (Budget.tenant_id == tenant_id) & (Budget.currency == currency) & Budget.is_prepaid
    budget = session.scalars(select(Budget).where(of_tenant)).one_or_none()
    if budget is None:
        budget = Budget(
            id=new_id("budget"),
            tenant_id=tenant_id,
            currency=currency,
            period=BudgetPeriod.TOTAL,
            amount=max(balance, Decimal(0)),
            is_hard=True,
            is_prepaid=True,
        )
        session.add(budget)
        session.flush()
        _log(session, "budget.prepaid", budget.id, budget.amount, currency, True)
    return budget


def inherit_budgets(session: Session, tenant_id: str, *, old_key_id: str, new_key_id: str) -> None:
    """Give a key the budgets of the one that it replaces, spent as far as they are. Each of both then counts alone."""
    lock_budgets(session, tenant_id)
    inherited = session.scalars(select(Budget).where(Budget.api_key_id == old_key_id)).all()
    for old in inherited:
        new = Budget(
            id=new_id("budget"),
            tenant_id=tenant_id,
            api_key_id=new_key_id,
            currency=old.currency,
            period=old.period,
            amount=old.amount,
            is_hard=old.is_hard,
            is_prepaid=old.is_prepaid,
        )
        session.add(new)
        session.flush()
        session.execute(_INHERIT_USES, {"old_id": old.id, "new_id": new.id})


def remove_budget(session: Session, budget_id: str, *, actor: str | None = None) -> Budget:
    """Batches that it has paused go on. Raises UserError where there is none."""
    _lock_what_goes_with(session, _find_removable(session, budget_id))
    budget = _find_removable(session, budget_id)  # another operator may have been waited for
    session.delete(budget)
    session.flush()
    _log(session, "budget.remove", budget_id, budget.amount, budget.currency, budget.is_hard, actor)
    return budget


def _find_removable(session: Session, budget_id: str) -> Budget:
    budget = session.get(Budget, budget_id, populate_existing=True)
    if budget is None or budget.batch_id is not None:
        raise UserError(f"There is no budget {budget_id!r}. `ryzanstein budgets list` shows those that there are.")
    return budget


def lock_budgets(session: Session, tenant_id: str) -> None:
    """Nothing is recorded of the tenant, nor are its budgets set, until the caller's transaction ends."""
    session.execute(select(func.pg_advisory_xact_lock(LOCK_CLASS, func.hashtext(tenant_id))))


def list_budgets(session: Session, tenant_id: str | None = None) -> list[BudgetState]:
    """Of one tenant or of all, those of batches left out, with their present periods."""
    query = select(Budget).where(Budget.batch_id.is_(None)).order_by(Budget.tenant_id, Budget.created_at, Budget.id)
    if tenant_id is not None:
        query = query.where(Budget.tenant_id == tenant_id)
    return _states(session, session.scalars(query).all())


def alert_budgets(engine: Engine) -> int:
    """Say of which budgets a threshold has been reached, once in a period; returns how many were."""
    with connection(engine) as conn:
        reached = conn.execute(_ALERT, {"thresholds": list(THRESHOLDS)}).all()
    for row in reached:
        log.warning(
            "budget reached a threshold",
            budget=row.id,
            tenant=row.tenant_id,
            percent=row.percent,
            spent=decimal_text(row.spent),
            amount=decimal_text(row.amount),
            currency=row.currency,
        )
    return len(reached)


def _prepaid(tenant_id: str, currency: str) -> Update:
    return update(Budget).where(Budget.tenant_id == tenant_id, Budget.currency == currency, Budget.is_prepaid)


def _lock_what_goes_with(session: Session, budget: Budget) -> None:
    """In the order of everybody else: slices, what is held for them, the budget's periods, and the budget last.

    Raises UserError where claims under it come faster than they can be locked.
    """
    conn, of_budget = session.connection(), {"budget_id": budget.id}
    for _ in range(_MAX_LOOKS):
        with conn.begin_nested() as look:
            locked = set(conn.scalars(_LOCK_HELD_SLICES, of_budget))
            lock_budgets(session, budget.tenant_id)
            conn.execute(_LOCK_PERIODS, of_budget)
            # From here on no claim can hold anything under it; one that did in between must not be waited for.
            if set(conn.scalars(_HELD_SLICES, of_budget)) <= locked:
                return
            look.rollback()
    raise UserError(f"Slices are being claimed under the budget {budget.id!r} at this moment. Try again.")


def _states(session: Session, budgets: Sequence[Budget]) -> list[BudgetState]:
    uses = {row.id: row for row in session.execute(_USES, {"budget_ids": [budget.id for budget in budgets]})}
    # One that was removed since it was read has no row.
    return [BudgetState(budget, uses[budget.id].spent, uses[budget.id].held) for budget in budgets if budget.id in uses]


def _log(
    session: Session, act: str, budget_id: str, amount: Decimal, currency: str, is_hard: bool, actor: str | None = None
) -> None:
    details = {"amount": decimal_text(amount), "currency": currency, "is_hard": is_hard}
    audit_log.record(session, act=act, object=budget_id, details=details, actor=actor)
