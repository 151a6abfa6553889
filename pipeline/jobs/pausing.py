"""Pausing: a batch whose budget has no room for its next request waits, keeps what it has, and goes on when there is.

A slice of which only the first requests fit is cut in two, so that a budget is used up to its last request. While a
batch is paused its window stands still. One that its client has paused goes on when its client says so, whatever
budgets have room: see `pipeline/jobs/client_pauses.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Final

import structlog
from sqlalchemy import Connection, Engine, text

from pipeline.billing import holds
from pipeline.billing.cards_in_effect import find_rates_of_batches
from pipeline.billing.holds import APPLIES, PERIOD_START
from pipeline.billing.rating import Rates, worst_cost
from pipeline.jobs import outbox
from pipeline.jobs.fairness import lift
from pipeline.jobs.planning import EXPECTED_ANSWER_TOKENS
from pipeline.tables.batches import PAUSED_BY_CLIENT
from pipeline.tables.session import connection

if TYPE_CHECKING:
    from pipeline.jobs.claiming import ClaimedSlice

log = structlog.get_logger(__name__)

#: Batches that one sweep looks at.
_PAGE: Final = 100

_WORK: Final = text("""
    SELECT id, num_prompt_tokens,
           CAST(params ->> 'max_tokens' AS bigint) * coalesce(CAST(params ->> 'n' AS bigint), 1) AS num_output_tokens
    FROM requests WHERE slice_id = :slice_id AND outcome IS NULL ORDER BY id
""")
_PAUSE: Final = text("""
    UPDATE batches SET pause_reason = :budget_id, pause_needs = :needs, paused_at = clock_timestamp()
    WHERE id = :batch_id AND pause_reason IS NULL
""")
_UNCLAIM: Final = text("""
    WITH slice AS (
        UPDATE slices SET status = 'pending', lease_expires_at = NULL WHERE id = :slice_id RETURNING id, lease_epoch
    )
    DELETE FROM attempts a USING slice WHERE a.slice_id = slice.id AND a.lease_epoch = slice.lease_epoch
""")
# Numbered behind all slices of its batch, whose row is locked so that no other is cut at the same time. What a slice
# shares with its beginning is divided as its requests are.
_CUT: Final = text("""
    WITH batch AS (
        SELECT id FROM batches WHERE id = :batch_id FOR NO KEY UPDATE
    ), moved AS (
        SELECT count(*) AS num_requests, sum(num_prompt_tokens) AS num_prompt_tokens,
               sum(num_prompt_tokens + num_output_tokens) AS num_tokens,
               sum(least(num_output_tokens, :answer_tokens)) AS num_answer_tokens
        FROM (
            SELECT num_prompt_tokens,
                   CAST(params ->> 'max_tokens' AS bigint) * coalesce(CAST(params ->> 'n' AS bigint), 1)
                       AS num_output_tokens
            FROM requests WHERE slice_id = :slice_id AND outcome IS NULL AND id >= :first_id
        ) request
    ), rest AS (
        INSERT INTO slices (batch_id, tenant_id, service_class, model, position, deadline, num_requests, num_unfinished,
                            num_tokens, num_prompt_tokens, num_shared_tokens, num_answer_tokens, status,
                            lease_epoch)
        SELECT s.batch_id, s.tenant_id, s.service_class, s.model,
               (SELECT max(position) + 1 FROM slices WHERE batch_id = batch.id), s.deadline,
               m.num_requests, m.num_requests, m.num_tokens, least(m.num_prompt_tokens, s.num_prompt_tokens),
               s.num_shared_tokens * m.num_requests / s.num_requests, least(m.num_answer_tokens, s.num_answer_tokens),
               'pending', s.lease_epoch
        FROM batch, moved m, slices s WHERE s.id = :slice_id
        RETURNING id, num_requests, num_tokens, num_prompt_tokens, num_shared_tokens, num_answer_tokens
    ), requests AS (
        UPDATE requests SET slice_id = rest.id FROM rest
        WHERE slice_id = :slice_id AND outcome IS NULL AND requests.id >= :first_id
    )
    UPDATE slices s
    SET num_requests = s.num_requests - rest.num_requests, num_unfinished = s.num_unfinished - rest.num_requests,
        num_tokens = s.num_tokens - rest.num_tokens, num_prompt_tokens = s.num_prompt_tokens - rest.num_prompt_tokens,
        num_shared_tokens = s.num_shared_tokens - rest.num_shared_tokens,
        num_answer_tokens = s.num_answer_tokens - rest.num_answer_tokens
    FROM rest WHERE s.id = :slice_id
""")


def hold_or_pause(conn: Connection, claimed: ClaimedSlice) -> bool:
    """Hold the most that a slice can cost, right after its claim and in its transaction.

    Where the budgets of its batch have room for some of its requests alone, the others become a slice of their own.
    Where they have none, the batch is paused, the claim is as if it had not been, and this is False.
    """
    if not holds.has_budget(conn, claimed.batch_id):
        return True
    rates = find_rates_of_batches(conn, [claimed.batch_id]).get(claimed.batch_id)
    if rates is None:
        return True  # what has no price costs nothing yet; it is rated, and counted, when it has one
    uses = holds.lock_uses(conn, claimed.batch_id, rates.currency)
    holds.release(conn, [claimed.id])
    work = conn.execute(_WORK, {"slice_id": claimed.id}).all()
    sizes = [(row.num_prompt_tokens, row.num_output_tokens) for row in work]
    limiting = min((use for use in uses if use.is_hard), key=lambda use: use.room, default=None)
    count = len(work) if limiting is None else _num_fitting(rates, sizes, limiting.room)
    if count == 0 and work and limiting is not None:
        _pause(conn, claimed, limiting.budget_id, worst_cost(rates, *sizes[0]))
        return False
    if count < len(work):
        conn.execute(
            _CUT,
            {
                "batch_id": claimed.batch_id,
                "slice_id": claimed.id,
                "first_id": work[count].id,
                "answer_tokens": EXPECTED_ANSWER_TOKENS,
            },
        )
        outbox.add_tickets(conn, claimed.model, 1)
    holds.take(conn, claimed.id, uses, _worst(rates, sizes[:count]), rates.rate_card_id)
    return True


def resume_paused(engine: Engine) -> int:
    """Batches whose budgets have room again: one was raised, a month has begun, or others needed less than was held."""
    with connection(engine) as conn:
        waiting = list(conn.scalars(_HAVE_ROOM, {"limit": _PAGE}))
    return sum(_resume(engine, batch_id) for batch_id in waiting)


def _num_fitting(rates: Rates, sizes: Sequence[tuple[int, int]], room: Decimal) -> int:
    """How many requests from the first on can't cost more than `room` together."""
    # By bisection: what more requests can cost is never less.
    low, high = 0, len(sizes)
    while low < high:
        middle = (low + high + 1) // 2
        if _worst(rates, sizes[:middle]) <= room:
            low = middle
        else:
            high = middle - 1
    return low


def _worst(rates: Rates, sizes: Sequence[tuple[int, int]]) -> Decimal:
    return worst_cost(rates, sum(prompt for prompt, _ in sizes), sum(output for _, output in sizes))


def _pause(conn: Connection, claimed: ClaimedSlice, budget_id: str, needs: Decimal) -> None:
    conn.execute(_UNCLAIM, {"slice_id": claimed.id})
    conn.execute(_PAUSE, {"batch_id": claimed.batch_id, "budget_id": budget_id, "needs": needs})
    log.info("batch paused", **claimed.ids, budget=budget_id)


# One that is no longer in progress has nothing to go on with. What it needs is in the currency of the budget that it
# lacked room in; if that is gone, the next claim finds out what it needs.
_HAVE_ROOM: Final = text(f"""
    SELECT b.id FROM batches b
    WHERE b.pause_reason <> '{PAUSED_BY_CLIENT}' AND b.status = 'in_progress' AND NOT EXISTS (
        SELECT FROM budgets g
        LEFT JOIN budget_uses u ON u.budget_id = g.id AND u.period_start = {PERIOD_START}
        WHERE {APPLIES} AND g.is_hard AND g.currency = (SELECT p.currency FROM budgets p WHERE p.id = b.pause_reason)
          AND g.amount - coalesce(u.spent + u.held, 0) < b.pause_needs
    )
    ORDER BY b.paused_at LIMIT :limit
""")  # noqa: S608 - constants
# The slices first, as everywhere; one that is just being claimed is passed over, and its deadline stays as it is.
_MOVE_DEADLINES: Final = text("""
    WITH waiting AS (
        SELECT s.id FROM slices s WHERE s.batch_id = :batch_id AND s.status = 'pending'
        ORDER BY s.id FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE slices s SET deadline = s.deadline + (clock_timestamp() - b.paused_at)
    FROM waiting, batches b
    WHERE s.id = waiting.id AND b.id = :batch_id AND b.paused_at IS NOT NULL
    RETURNING s.model
""")
_RESUME: Final = text("""
    UPDATE batches SET expires_at = expires_at + (clock_timestamp() - paused_at),
                       pause_reason = NULL, pause_note = NULL, pause_needs = NULL, paused_at = NULL
    WHERE id = :batch_id AND (pause_reason = :by_client) = :is_by_client
""")


def go_on(conn: Connection, batch_id: str, *, is_by_client: bool) -> bool:
    """Let a batch go on that a client, or a budget, has paused, in the caller's transaction; False if none has.

    Call `outbox.publish_soon` after the commit.
    """
    with conn.begin_nested() as attempt:
        models = list(conn.scalars(_MOVE_DEADLINES, {"batch_id": batch_id}))
        resumed = conn.execute(
            _RESUME, {"batch_id": batch_id, "by_client": PAUSED_BY_CLIENT, "is_by_client": is_by_client}
        )
        if resumed.rowcount == 0:
            attempt.rollback()
            return False
    for model in set(models):
        outbox.add_tickets(conn, model, models.count(model))
        lift(conn, batch_id, model)
    return True


def _resume(engine: Engine, batch_id: str) -> bool:
    with connection(engine) as conn:
        goes_on = go_on(conn, batch_id, is_by_client=False)
    if goes_on:
        log.info("batch goes on", batch=batch_id)
    return goes_on
