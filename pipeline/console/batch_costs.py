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

#: Answers whose prices are added up for one page; of more, the cost is computed from the batch's counters.
_MOST_ANSWERS: Final = 5_000

# As it is priced now: a correction supersedes the one before.
_AMOUNTS: Final = text("""
    SELECT currency, sum(amount) AS amount FROM rated_usage
    WHERE batch_id = :batch_id AND revision IS NOT NULL GROUP BY currency
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
    if batch.num_succeeded <= _MOST_ANSWERS:
        session.execute(_BY_KEY)
        rows = session.execute(_AMOUNTS, {"batch_id": batch.id}).all()
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
