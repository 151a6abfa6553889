"""Holds: room that a claimed slice takes in budgets for the most that it can cost, until its requests have ended.

Of each period of a budget, spent + held is never more than its amount if it is hard: a claim locks the period's row,
and takes no more than fits. What is recorded turns what was held into what is spent; what is left of a hold goes with
the claim. Amounts count in the period of the claim, so that a month that ends between needs no second hold.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, Final

from psycopg import Cursor
from sqlalchemy import Connection, text

from pipeline.billing.rating import exact_sum

#: Whether a budget `g` is one of those that a batch `b` is paid from.
APPLIES: Final = """(
    g.batch_id = b.id OR (
        g.batch_id IS NULL AND g.tenant_id = b.tenant_id
        AND (g.project_id IS NULL OR g.project_id = b.project_id)
        AND (g.api_key_id IS NULL OR g.api_key_id = b.api_key_id)
    )
)"""


def _period_start(month: str) -> str:
    """SQL for the first day of the period of a budget `g` that the month with this first day is in."""
    return f"CASE g.period WHEN 'month' THEN {month} ELSE DATE '2000-01-01' END"


#: Of the present period.
PERIOD_START: Final = _period_start("CAST(date_trunc('month', now() AT TIME ZONE 'UTC') AS date)")

_OPEN_USES: Final = text(f"""
    INSERT INTO budget_uses (budget_id, period_start)
    SELECT g.id, {PERIOD_START} FROM batches b JOIN budgets g ON {APPLIES}
    WHERE b.id = :batch_id AND g.currency = :currency
      AND NOT EXISTS (SELECT FROM budget_uses u WHERE u.budget_id = g.id AND u.period_start = {PERIOD_START})
    ORDER BY g.id ON CONFLICT DO NOTHING
""")  # noqa: S608 - constants
_LOCK_USES: Final = text(f"""
    SELECT g.id AS budget_id, u.period_start, g.is_hard, g.amount - u.spent - u.held AS room
    FROM batches b JOIN budgets g ON {APPLIES}
    JOIN budget_uses u ON u.budget_id = g.id AND u.period_start = {PERIOD_START}
    WHERE b.id = :batch_id AND g.currency = :currency ORDER BY g.id FOR NO KEY UPDATE OF u
""")  # noqa: S608 - constants
_HAS_BUDGET: Final = text(f"""
    SELECT EXISTS (SELECT FROM batches b JOIN budgets g ON {APPLIES} WHERE b.id = :batch_id)
""")  # noqa: S608 - constants
_TAKE: Final = text("""
    WITH taken AS (
        INSERT INTO holds (slice_id, budget_id, period_start, amount, rate_card_id)
        SELECT :slice_id, use.budget_id, use.period_start, :amount, :rate_card_id
        FROM unnest(CAST(:budget_ids AS text[]), CAST(:period_starts AS date[])) AS use (budget_id, period_start)
        RETURNING budget_id, period_start, amount
    )
    UPDATE budget_uses u SET held = u.held + taken.amount FROM taken
    WHERE u.budget_id = taken.budget_id AND u.period_start = taken.period_start
""")
_RELEASE: Final = text("""
    WITH gone AS (
        DELETE FROM holds WHERE slice_id = ANY(:slice_ids) RETURNING budget_id, period_start, amount
    ), freed AS (
        SELECT budget_id, period_start, sum(amount) AS amount FROM gone GROUP BY budget_id, period_start
    ), locked AS (
        SELECT u.budget_id, u.period_start, freed.amount
        FROM budget_uses u JOIN freed USING (budget_id, period_start)
        ORDER BY u.budget_id, u.period_start FOR NO KEY UPDATE OF u
    )
    UPDATE budget_uses u SET held = u.held - locked.amount FROM locked
    WHERE u.budget_id = locked.budget_id AND u.period_start = locked.period_start
""")

# Of slices whose rows and whose holds this transaction has locked, after their states are up to date.
_SETTLE: Final = f"""
    WITH cost AS (
        SELECT * FROM unnest(%(slice_ids)b::bigint[], %(currencies)b::text[], %(amounts)b::numeric[])
            AS c (slice_id, currency, amount)
    ), held AS (
        SELECT h.slice_id, h.budget_id, h.period_start, s.status = 'done' AS is_done,
               CASE WHEN s.status = 'done' THEN h.amount ELSE least(h.amount, greatest(c.amount, 0)) END AS freed
        FROM holds h JOIN slices s ON s.id = h.slice_id JOIN budgets g ON g.id = h.budget_id
        LEFT JOIN cost c ON c.slice_id = h.slice_id AND c.currency = g.currency
        WHERE h.slice_id = ANY(%(all_slice_ids)b::bigint[])
    ), gone AS (
        DELETE FROM holds h USING held
        WHERE held.is_done AND h.slice_id = held.slice_id AND h.budget_id = held.budget_id
    ), lessened AS (
        UPDATE holds h SET amount = h.amount - held.freed FROM held
        WHERE NOT held.is_done AND held.freed > 0 AND h.slice_id = held.slice_id AND h.budget_id = held.budget_id
    ), spent AS (
        SELECT g.id AS budget_id, coalesce(h.period_start, {PERIOD_START}) AS period_start, c.amount
        FROM cost c JOIN slices s ON s.id = c.slice_id JOIN batches b ON b.id = s.batch_id
        JOIN budgets g ON {APPLIES} AND g.currency = c.currency
        LEFT JOIN holds h ON h.slice_id = c.slice_id AND h.budget_id = g.id
    )
    INSERT INTO budget_uses AS u (budget_id, period_start, spent, held)
    SELECT budget_id, period_start, sum(spent), - sum(freed)
    FROM (
        SELECT budget_id, period_start, amount AS spent, 0 AS freed FROM spent
        UNION ALL SELECT budget_id, period_start, 0, freed FROM held
    ) change
    GROUP BY budget_id, period_start ORDER BY budget_id, period_start
    ON CONFLICT (budget_id, period_start) DO UPDATE SET spent = u.spent + excluded.spent, held = u.held + excluded.held
"""  # noqa: S608 - constants

# Of usage for which nothing was held.
_SPEND: Final = f"""
    INSERT INTO budget_uses AS u (budget_id, period_start, spent)
    SELECT g.id, {_period_start("c.month")} AS period_start, sum(c.amount)
    FROM unnest(%(batch_ids)b::text[], %(months)b::date[], %(currencies)b::text[], %(amounts)b::numeric[])
        AS c (batch_id, month, currency, amount)
    JOIN batches b ON b.id = c.batch_id JOIN budgets g ON {APPLIES} AND g.currency = c.currency
    GROUP BY g.id, period_start ORDER BY g.id, period_start
    ON CONFLICT (budget_id, period_start) DO UPDATE SET spent = u.spent + excluded.spent
"""  # noqa: S608 - constants

#: Keeps a budget from being set while outcomes of its tenant are recorded, which might not see it and not be seen.
LOCK_CLASS: Final = 4
_ANNOUNCE: Final = f"""
    SELECT pg_advisory_xact_lock_shared({LOCK_CLASS}, hashtext(id)) FROM unnest(%(tenant_ids)b::text[]) AS t (id)
"""  # noqa: S608 - a constant


@dataclass(frozen=True, slots=True)
class Use:
    """The present period of a budget, locked."""

    budget_id: str
    period_start: date
    is_hard: bool
    #: What is neither spent nor held of its amount; below zero where that was lowered.
    room: Decimal


@dataclass(frozen=True, slots=True)
class SliceCost:
    """What the outcomes of a slice that are being recorded cost."""

    slice_id: int
    currency: str
    amount: Decimal


@dataclass(frozen=True, slots=True)
class LateUsage:
    """Usage of a batch, in a month that is given by its first day, which had no price when it was recorded."""

    batch_id: str
    month: date
    currency: str


def has_budget(conn: Connection, batch_id: str) -> bool:
    """Whether anything limits or watches what a batch may cost."""
    return bool(conn.scalar(_HAS_BUDGET, {"batch_id": batch_id}))


def lock_uses(conn: Connection, batch_id: str, currency: str) -> list[Use]:
    """What the budgets of a batch in its currency have seen, locked until the end of the transaction."""
    of_batch = {"batch_id": batch_id, "currency": currency}
    conn.execute(_OPEN_USES, of_batch)
    return [Use(*row) for row in conn.execute(_LOCK_USES, of_batch)]


def take(conn: Connection, slice_id: int, uses: Sequence[Use], amount: Decimal, rate_card_id: int) -> None:
    """Hold `amount` for a slice in each of `uses`, which the caller has locked and compared with it.

    Whatever prices change meanwhile, the slice costs what the card says that the amount was counted by.
    """
    conn.execute(
        _TAKE,
        {
            "slice_id": slice_id,
            "amount": amount,
            "rate_card_id": rate_card_id,
            "budget_ids": [use.budget_id for use in uses],
            "period_starts": [use.period_start for use in uses],
        },
    )


def release(conn: Connection, slice_ids: Sequence[int]) -> None:
    """Give up what is held for slices that are no longer claimed, in the transaction that takes the claim away."""
    if slice_ids:
        conn.execute(_RELEASE, {"slice_ids": list(slice_ids)})


def announce(cursor: Cursor[Any], tenant_ids: Iterable[str]) -> None:
    """Before outcomes of these tenants are charged; waits for no answer."""
    cursor.execute(_ANNOUNCE, {"tenant_ids": sorted(tenant_ids)})


def settle(cursor: Cursor[Any], slice_ids: Iterable[int], costs: Sequence[SliceCost]) -> None:
    """Spend what outcomes of `slice_ids` cost, and give up holds: as much, or all of a slice that is done.

    Call it when the slices have their new states. Waits for no answer, so that it can be part of a pipeline.
    """
    by_slice: dict[tuple[int, str], list[Decimal]] = defaultdict(list)
    for cost in costs:
        by_slice[cost.slice_id, cost.currency].append(cost.amount)
    cursor.execute(
        _SETTLE,
        {
            "all_slice_ids": sorted(slice_ids),
            "slice_ids": [slice_id for slice_id, _ in by_slice],
            "currencies": [currency for _, currency in by_slice],
            "amounts": [exact_sum(amounts) for amounts in by_slice.values()],
        },
    )


def spend(cursor: Cursor[Any], costs: Mapping[LateUsage, Decimal]) -> None:
    """Spend what was rated late, in the periods in which it was used; after `announce`. Locks what claims lock."""
    cursor.execute(
        _SPEND,
        {
            "batch_ids": [usage.batch_id for usage in costs],
            "months": [usage.month for usage in costs],
            "currencies": [usage.currency for usage in costs],
            "amounts": list(costs.values()),
        },
    )
