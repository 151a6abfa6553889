"""Batches of a tenant with a budget, and what both come to."""

from __future__ import annotations

from decimal import Decimal

from seeds import MODEL, sql
from submitting import Bench, request_line

from pipeline.billing.budgets import Scope, list_budgets, set_budget
from pipeline.jobs.claiming import claim_slice
from pipeline.jobs.preparing import prepare
from pipeline.tables import BatchStatus
from pipeline.tables.session import transaction

#: Of the card that `seeds` makes, for one token after the discount.
INPUT, OUTPUT = (Decimal(price) * Decimal("0.667") / 10**6 for price in ("0.137", "0.411"))
#: What a request of `lines` can cost: three tokens of prompt, four of answer.
MOST = 3 * INPUT + 4 * OUTPUT


def lines(count: int) -> list[dict[str, object] | str]:
    return [request_line(f"request-{number}", [number, 2, 3], max_tokens=4) for number in range(1, count + 1)]


def run(bench: Bench, count: int, **options: object) -> str:
    batch_id = bench.submit(lines(count), **options)  # type: ignore[arg-type]
    assert prepare(batch_id, bench.engine) is BatchStatus.IN_PROGRESS
    return batch_id


def budget(bench: Bench, amount: Decimal, **options: object) -> str:
    with transaction(bench.engine) as session:
        return set_budget(session, Scope(tenant_id=bench.tenant.id), currency="USD", amount=amount, **options).id  # type: ignore[arg-type]


def state(bench: Bench) -> tuple[Decimal, Decimal]:
    """Spent and held of the only budget."""
    with transaction(bench.engine) as session:
        [found] = list_budgets(session)
        return found.spent, found.held


def nothing_to_claim(bench: Bench) -> bool:
    with bench.engine.begin() as conn:
        return claim_slice(conn, model=MODEL, group_id="g", lease_seconds=60) is None


def spent_in_truth(bench: Bench) -> Decimal:
    [(amount,)] = sql(bench.engine, "SELECT coalesce(sum(amount), 0) FROM usage_prices")
    return Decimal(amount)
