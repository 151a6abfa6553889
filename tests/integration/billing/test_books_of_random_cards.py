"""Whatever the cards, the order and the grouping: events, rated lines and the ledger are one sum, to the last digit.

BILLING_EXAMPLES says how many random months are tried; a few, if not said.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from itertools import count

import yaml
from answered import answer_requests, usage
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from seeds import seed_tenant, sql
from sqlalchemy import Engine

from pipeline.billing.card_files import CardFile, read_card_file
from pipeline.billing.plans import add_draft, publish
from pipeline.billing.pricing import EXACT, exact_sum
from pipeline.billing.reconciliation import drift_of
from pipeline.billing.reports import Month, bills
from pipeline.billing.rerating import rate_by_card, rate_by_own_cards
from pipeline.billing.rollups import find_drift
from pipeline.tables import Meter, ServiceClass
from pipeline.tables.session import transaction

NUM_EXAMPLES = int(os.environ.get("BILLING_EXAMPLES", "8"))
MONTH = Month.of(datetime.now(UTC))
_numbers = count(1)

PRICES = st.decimals(min_value=0, max_value=10**6, places=3).map(str)
MULTIPLIERS = st.decimals(min_value=0, max_value=3, places=2).map(str)
QUANTITIES = st.integers(0, 400)


@st.composite
def any_rate(draw: st.DrawFn) -> dict[str, object]:
    pricing = draw(st.sampled_from(["price", "graduated", "volume", "package"]))
    minimum = {"minimum": draw(PRICES)} if draw(st.booleans()) else {}
    if pricing == "price":
        return {"price": draw(PRICES), **minimum}
    if pricing == "package":
        return {"package": {"size": draw(st.integers(1, 300)), "price": draw(PRICES)}, **minimum}
    ends = sorted(draw(st.sets(st.integers(1, 900), min_size=1, max_size=3)))
    prices = draw(st.lists(PRICES, min_size=len(ends) + 1, max_size=len(ends) + 1))
    if pricing == "volume":
        prices.sort(key=Decimal, reverse=True)
    tiers: list[dict[str, object]] = [{"up_to": end, "price": price} for end, price in zip(ends, prices, strict=False)]
    return {pricing: [*tiers, {"price": prices[-1]}], **minimum}


@dataclass(frozen=True)
class Recorded:
    """Answers of one batch, and how many are recorded at once."""

    service_class: ServiceClass
    used: Sequence[tuple[int, int, int]]
    num_at_once: int


BATCHES = st.lists(
    st.builds(
        Recorded,
        st.sampled_from(ServiceClass),
        st.lists(st.tuples(QUANTITIES, st.just(0) | QUANTITIES, QUANTITIES), min_size=1, max_size=4),
        st.integers(1, 4),
    ),
    min_size=1,
    max_size=3,
)


@st.composite
def any_card(draw: st.DrawFn) -> dict[str, object]:
    return {
        "batch_discount": draw(st.sampled_from(["0", "0.5", "0.25"])),
        "multipliers": {"priority": draw(MULTIPLIERS), "flex": draw(MULTIPLIERS)},
        "models": {"tiny": {name: draw(any_rate()) for name in ("input", "cached_input", "output")}},
    }


def read(card: dict[str, object], plan: str, currency: str) -> CardFile:
    return read_card_file(yaml.safe_dump({"plan": plan, "currency": currency, **card}))


def expected_total(card: CardFile, batches: Sequence[Recorded]) -> Decimal:
    """What the card says of the sums of the month: no event, no order and no group in it."""
    multipliers = {
        ServiceClass.STANDARD: Decimal(1),
        ServiceClass.PRIORITY: card.multipliers.priority,
        ServiceClass.FLEX: card.multipliers.flex,
    }
    parts = []
    for service_class, multiplier in multipliers.items():
        of_class = [one for batch in batches if batch.service_class is service_class for one in batch.used]
        part = EXACT.multiply(EXACT.subtract(Decimal(1), card.batch_discount), multiplier)
        for position, meter in enumerate(Meter):
            total = card.rates()["tiny"][meter].total(sum(used[position] for used in of_class))
            parts.append(EXACT.multiply(total, part))
    return exact_sum(parts)


@given(
    card=any_card(),
    correction=any_card(),
    currency=st.sampled_from(["USD", "JPY", "KWD"]),
    batches=BATCHES,
    data=st.data(),
)
# Without shrinking, which takes minutes of a database.
@settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
def test_events_lines_and_ledger_are_one_sum(
    database: Engine,
    card: dict[str, object],
    correction: dict[str, object],
    currency: str,
    batches: list[Recorded],
    data: st.DataObject,
) -> None:
    number = next(_numbers)
    if number == 1:
        sql(database, "INSERT INTO served_models (name, path, context_length) VALUES ('tiny', '/', 2048)")
    tenant = seed_tenant(database, f"tenant {number}")
    plan = f"plan-{number}"
    card_file, correction_file = read(card, plan, currency), read(correction, plan, currency)
    with transaction() as session:
        publish(session, add_draft(session, card_file))
        sql_values = {"tenant": tenant.id, "plan": plan}
    sql(database, "INSERT INTO contracts (id, tenant_id, plan) VALUES (:tenant, :tenant, :plan)", **sql_values)

    for batch in data.draw(st.permutations(batches)):
        answer_requests(
            database,
            tenant,
            [usage(*used) for used in data.draw(st.permutations(batch.used))],
            service_class=batch.service_class,
            num_at_once=batch.num_at_once,
        )
    check_books(tenant.id, currency, expected_total(card_file, batches))

    with transaction() as session:
        own = rate_by_own_cards(session, MONTH, tenant_id=tenant.id)
        assert own.sha256_before == own.sha256_after
        rate_by_card(session, MONTH, correction_file, tenant_id=tenant.id, publishes=True)
    check_books(tenant.id, currency, expected_total(correction_file, batches))


def check_books(tenant_id: str, currency: str, total: Decimal) -> None:
    with transaction() as session:
        assert drift_of(session, MONTH, tenant_id) == []
        assert find_drift(session.connection(), tenant_id, MONTH.start, MONTH.end) == []
        [bill] = bills(session, MONTH, tenant_id=tenant_id)
        assert (bill.currency, bill.exact) == (currency, total)
