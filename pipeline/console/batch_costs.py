"""What a batch has cost so far."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from pipeline.billing.cards_in_effect import find_rates
from pipeline.billing.rating import TokenUsage, expected_cost
from pipeline.tables import Batch

#: Answers whose lines are added up for one page; of more, the cost is computed from the batch's counters.
_MOST_LINES: Final = 5_000

# Of each event the line that holds now: a correction supersedes the one before.
_LINES: Final = text("""
    SELECT l.currency, sum(l.amount) AS amount
    FROM requests r JOIN rated_lines l ON l.request_id = r.id
    WHERE r.batch_id = :batch_id AND r.outcome = 'succeeded' AND NOT EXISTS (
        SELECT FROM rated_lines later
        WHERE later.request_id = l.request_id AND later.meter = l.meter AND later.revision > l.revision
    )
    GROUP BY l.currency
""")
_BY_KEY: Final = text("SELECT set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true)")
_SPENT: Final = text("""
    SELECT g.currency, sum(u.spent) AS amount FROM budgets g JOIN budget_uses u ON u.budget_id = g.id
    WHERE g.batch_id = :batch_id GROUP BY g.currency
""")


@dataclass(frozen=True)
class Cost:
    amount: Decimal
    currency: str
    #: What it is billed at; else what its tokens cost at the prices of this moment.
    is_exact: bool


def cost_so_far(session: Session, batch: Batch) -> Cost | None:
    """None where nothing is known of its price."""
    if batch.model is None:
        return None
    if batch.num_succeeded <= _MOST_LINES:
        session.execute(_BY_KEY)
        rows = session.execute(_LINES, {"batch_id": batch.id}).all()
    else:
        rows = session.execute(_SPENT, {"batch_id": batch.id}).all()
    if len(rows) == 1:
        return Cost(rows[0].amount, rows[0].currency, is_exact=True)
    rates = find_rates(
        session,
        tenant_id=batch.tenant_id,
        model=batch.model,
        service_class=batch.service_class,
        rate_card_id=batch.rate_card_id,
    )
    if rates is None:
        return None
    usage = TokenUsage(batch.num_prompt_tokens, batch.num_cached_tokens, batch.num_completion_tokens)
    return Cost(expected_cost(rates, usage), rates.currency, is_exact=batch.num_succeeded == 0)
