"""Reconciliation: do engines, usage, prices, ledger and invoices of a month agree, tenant by tenant?

Each check compares what two of them say and gives the difference as a number, which is 0 where all is well. Differences
are summed without their signs, so that one does not hide another. Reads alone, in one snapshot.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from pipeline.billing.late_rating import UNRATED
from pipeline.billing.pricing import EXACT, ZERO, exact_sum
from pipeline.billing.reports import Month
from pipeline.billing.rerating import rate_by_own_cards
from pipeline.tables.session import get_engine


@dataclass(frozen=True, slots=True)
class Check:
    """What is compared, and the unit of the difference."""

    name: str
    statement: str
    unit: str


ENGINE_TOKENS: Final = Check(
    "engine_tokens", "the tokens that batches and attempts counted are those of the usage", "tokens"
)
ENGINE_MS: Final = Check("engine_ms", "the engine time that attempts counted is that of the usage", "milliseconds")
UNRATED_EVENTS: Final = Check("unrated_events", "all usage has a price", "events")
RATED_TOKENS: Final = Check("rated_tokens", "prices are of the quantities of their usage", "tokens")
RATED_AMOUNT: Final = Check("rated_amount", "prices are those of their cards", "currency")
LEDGER: Final = Check("ledger", "the ledger has the sum of the prices", "currency")
INVOICES: Final = Check("invoices", "issued invoices bill what was rated when they were issued", "currency")
CHECKS: Final = (ENGINE_TOKENS, ENGINE_MS, UNRATED_EVENTS, RATED_TOKENS, RATED_AMOUNT, LEDGER, INVOICES)


@dataclass(frozen=True, slots=True)
class Drift:
    """By how much two sides differ for a tenant and a month; never 0."""

    month: Month
    tenant_id: str
    tenant: str
    check: Check
    #: In the check's unit.
    amount: Decimal
    #: Of a check of money.
    currency: str = ""


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What was looked at, and what does not agree."""

    months: Sequence[Month]
    num_tenants: int
    drifts: Sequence[Drift]

    def total(self, check: Check) -> Decimal:
        """Over all tenants and months; of money, over all currencies, as a measure alone."""
        return exact_sum(drift.amount.copy_abs() for drift in self.drifts if drift.check is check)


# Of batches whose requests are all there: retention drops what is older than anybody bills.
_OF_MONTH: Final = """
    u.occurred_at >= :month_start AND u.occurred_at < :month_end
    AND (CAST(:tenant_id AS text) IS NULL OR u.tenant_id = :tenant_id)
"""
_POSTED_IN_MONTH: Final = """
    t.kind IN ('usage', 'adjustment') AND (
        t.period = :month OR t.period IS NULL AND t.created_at >= :month_start AND t.created_at < :month_end
    )
"""
_BATCHES: Final = f"""
    used AS (
        SELECT DISTINCT u.batch_id, u.tenant_id FROM metered_usage u
        WHERE {_OF_MONTH}
          AND NOT EXISTS (SELECT FROM dropped_batches d WHERE d.batch_id = u.batch_id)
    ), metered AS (
        SELECT u.batch_id, sum(u.quantity) AS num_tokens, sum(u.engine_ms) AS engine_ms,
               sum(u.quantity) FILTER (WHERE u.meter <> 'input_cached') AS num_computed
        -- An array, since the view is not asked by the rows of another table.
        FROM metered_usage u WHERE u.batch_id = ANY(ARRAY(SELECT batch_id FROM used)) GROUP BY u.batch_id
    ), attempted AS (
        SELECT a.batch_id, sum(a.num_tokens) AS num_computed, sum(a.engine_ms) AS engine_ms,
               bool_or(a.engine_ms IS NULL AND a.num_succeeded > 0) AS is_unknown
        FROM attempts a WHERE a.batch_id IN (SELECT batch_id FROM used) GROUP BY a.batch_id
    )
"""  # noqa: S608 — all of it is ours

_QUERIES: Final = {
    ENGINE_TOKENS: f"""
        WITH {_BATCHES}
        SELECT used.tenant_id, '' AS currency, sum(
            abs(b.num_prompt_tokens + b.num_completion_tokens - m.num_tokens)
            + abs(coalesce(a.num_computed, 0) - m.num_computed)
        )
        FROM used JOIN batches b ON b.id = used.batch_id JOIN metered m USING (batch_id)
        LEFT JOIN attempted a USING (batch_id) GROUP BY used.tenant_id
    """,  # noqa: S608
    ENGINE_MS: f"""
        WITH {_BATCHES}
        SELECT used.tenant_id, '' AS currency, sum(abs(coalesce(a.engine_ms, 0) - m.engine_ms))
        FROM used JOIN metered m USING (batch_id) JOIN attempted a USING (batch_id)
        WHERE NOT a.is_unknown GROUP BY used.tenant_id
    """,  # noqa: S608
    UNRATED_EVENTS: f"""
        SELECT u.tenant_id, '' AS currency, count(*) {UNRATED} AND {_OF_MONTH} GROUP BY u.tenant_id
    """,
    RATED_TOKENS: f"""
        SELECT u.tenant_id, '' AS currency, sum(abs(u.rated_quantity - u.quantity))
        FROM usage_prices u WHERE {_OF_MONTH} GROUP BY u.tenant_id
    """,  # noqa: S608
    # Of flat prices; the others are rated again. A line that differs in its price or currency counts as one unit of the
    # last digit, at least.
    RATED_AMOUNT: f"""
        SELECT u.tenant_id, u.currency, sum(greatest(
            abs(u.amount - u.rated_quantity * r.unit_price / 1000000 * (1 - k.batch_discount) * CASE u.service_class
                WHEN 'priority' THEN k.priority_multiplier WHEN 'flex' THEN k.flex_multiplier ELSE 1 END),
            CASE WHEN u.unit_price IS DISTINCT FROM r.unit_price OR u.currency <> k.currency
                THEN 0.000000000000001 ELSE 0 END
        ))
        FROM usage_prices u JOIN rate_cards k ON k.id = u.rate_card_id
        JOIN rates r ON r.rate_card_id = k.id AND r.model = u.model AND r.meter = u.meter
        WHERE r.pricing = 'flat' AND r.minimum = 0 AND {_OF_MONTH} GROUP BY u.tenant_id, u.currency
    """,  # noqa: S608
    # Of lines whose month was dropped, the roll-ups have the sum.
    LEDGER: f"""
        SELECT tenant_id, currency, sum(amount) FROM (
            SELECT u.tenant_id, u.currency, u.amount FROM rated_usage u WHERE u.revision IS NOT NULL AND {_OF_MONTH}
            UNION ALL
            SELECT u.tenant_id, u.currency, u.amount FROM (SELECT *, starts_at AS occurred_at FROM archived_usage) u
            WHERE u.currency <> '' AND {_OF_MONTH}
            UNION ALL
            SELECT t.tenant_id, a.currency, - e.amount
            FROM ledger_transactions t JOIN ledger_entries e ON e.transaction_id = t.id
            JOIN ledger_accounts a ON a.id = e.account_id AND a.kind = 'receivable'
            WHERE {_POSTED_IN_MONTH} AND (CAST(:tenant_id AS text) IS NULL OR t.tenant_id = :tenant_id)
        ) AS both_sides GROUP BY tenant_id, currency
    """,  # noqa: S608
    # What was posted after the last invoice that bills of the month is for the next, and no drift.
    INVOICES: f"""
        WITH billed AS (
            SELECT v.tenant_id, v.currency, max(v.issued_at) AS issued_at, coalesce(sum(i.exact), 0) AS exact
            FROM invoices v JOIN invoice_items i ON i.invoice_id = v.id
            WHERE v.status = 'final' AND i.day >= :month AND i.day < CAST(:month_end AS date)
              AND (CAST(:tenant_id AS text) IS NULL OR v.tenant_id = :tenant_id)
            GROUP BY v.tenant_id, v.currency
        )
        SELECT billed.tenant_id, billed.currency, billed.exact - coalesce((
            SELECT sum(e.amount)
            FROM ledger_transactions t JOIN ledger_entries e ON e.transaction_id = t.id
            JOIN ledger_accounts a ON a.id = e.account_id AND a.kind = 'receivable' AND a.currency = billed.currency
            WHERE t.tenant_id = billed.tenant_id AND t.created_at <= billed.issued_at AND {_POSTED_IN_MONTH}
        ), 0)
        FROM billed
    """,  # noqa: S608
}

_TENANTS: Final = text("SELECT id, name FROM tenants")
_MONTHS: Final = text("""
    SELECT DISTINCT date_trunc('month', starts_at, 'UTC') AS month FROM usage_rollups
    WHERE period = 'day' ORDER BY 1
""")


def reconcile(engine: Engine | None = None, *, months: Sequence[Month] | None = None) -> Reconciliation:
    """Compare the books of these months, or of every month in which anything was used."""
    snapshot = (engine or get_engine()).execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    with Session(snapshot) as session, session.begin():
        session.execute(text("SET LOCAL statement_timeout = 0"))  # some of it reads all of a month
        if months is None:
            months = [Month.of(month) for month in session.scalars(_MONTHS)]
        names = {row.id: row.name for row in session.execute(_TENANTS)}
        drifts = [drift for month in months for drift in _drifts(session, month, names)]
    return Reconciliation(tuple(months), len(names), tuple(drifts))


def drift_of(session: Session, month: Month, tenant_id: str) -> list[Drift]:
    """What does not agree for one tenant and month; nothing, or no invoice can be issued."""
    names = {row.id: row.name for row in session.execute(_TENANTS)}
    return _drifts(session, month, names, tenant_id)


def _drifts(session: Session, month: Month, names: dict[str, str], tenant_id: str | None = None) -> list[Drift]:
    values = {
        "month": month.start.date(),
        "month_start": month.start,
        "month_end": month.end,
        "tenant_id": tenant_id,
    }
    amounts: dict[tuple[str, Check, str], Decimal] = defaultdict(lambda: ZERO)
    for check, query in _QUERIES.items():
        wanted = {name: value for name, value in values.items() if f":{name}" in query}
        for owner, currency, amount in session.execute(text(query), wanted):
            amounts[owner, check, currency] = Decimal(amount)
    for one in rate_by_own_cards(session, month, tenant_id=tenant_id, only_stepped=True).differences:
        if one.num_changed:
            key = one.tenant_id, RATED_AMOUNT, one.currency
            amounts[key] = EXACT.add(amounts[key], max(one.change.copy_abs(), Decimal("1e-15")))
    found = [
        Drift(month, owner, names[owner], check, amount, currency)
        for (owner, check, currency), amount in amounts.items()
        if amount
    ]
    order = {check: position for position, check in enumerate(CHECKS)}
    return sorted(found, key=lambda drift: (drift.tenant, order[drift.check], drift.currency))
