from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.billing.pricing import Rate, Tier, exact_sum
from pipeline.billing.rating import Rates, TokenUsage, expected_cost, worst_cost
from pipeline.tables.batches import ServiceClass
from pipeline.tables.billing import Meter
from pipeline.tables.rates import Pricing

PRICES = st.decimals(min_value=0, max_value=10**13, places=6)
DISCOUNTS = st.decimals(min_value=0, max_value=1, places=3)
QUANTITIES = st.integers(min_value=0, max_value=10**10)


def flat(price: str | Decimal) -> Rate:
    return Rate(Pricing.FLAT, (Tier(None, Decimal(price)),))


def card(*rates: Rate, discount: str | Decimal = "0", multiplier: str | Decimal = "1") -> Rates:
    """Of input, cached input and output; of all of them if it is one."""
    by_meter = dict(zip(Meter, rates * (3 // len(rates)), strict=True))
    return Rates(1, "default", 1, "USD", ServiceClass.STANDARD, by_meter, Decimal(discount), Decimal(multiplier))


@given(PRICES, DISCOUNTS, QUANTITIES)
def test_an_amount_is_exact_and_fits_its_column(price: Decimal, discount: Decimal, quantity: int) -> None:
    amount = card(flat(price), discount=discount).amount(Meter.OUTPUT, quantity)
    assert Fraction(amount) == quantity * Fraction(price) / 1_000_000 * (1 - Fraction(discount))
    exponent = amount.as_tuple().exponent
    assert isinstance(exponent, int)
    assert exponent >= -15


def test_each_meter_has_its_price() -> None:
    rates = card(flat("0.10"), flat("0.05"), flat("0.40"), discount="0.5")
    assert rates.amount(Meter.INPUT_UNCACHED, 3) == Decimal("0.00000015")
    assert rates.amount(Meter.INPUT_CACHED, 3) == Decimal("0.000000075")
    assert rates.amount(Meter.OUTPUT, 3) == Decimal("0.0000006")


def test_cached_tokens_are_counted_apart_and_only_where_there_are_some() -> None:
    assert TokenUsage(10, 0, 5).quantities() == [(Meter.INPUT_UNCACHED, 10), (Meter.OUTPUT, 5)]
    assert TokenUsage(10, 4, 5).quantities() == [(Meter.INPUT_UNCACHED, 6), (Meter.INPUT_CACHED, 4), (Meter.OUTPUT, 5)]


@given(st.lists(st.decimals(min_value=0, max_value=10**9, places=15)))
def test_a_sum_loses_nothing(amounts: list[Decimal]) -> None:
    assert Fraction(exact_sum(amounts)) == sum(map(Fraction, amounts))


GRADUATED = Rate(Pricing.GRADUATED, (Tier(1_000, Decimal(4)), Tier(5_000, Decimal(2)), Tier(None, Decimal(1))))
VOLUME = Rate(Pricing.VOLUME, GRADUATED.tiers)
PACKAGE = Rate(Pricing.PACKAGE, (Tier(None, Decimal("0.25")),), package_size=1_000)
MICRO = Decimal("0.000001")


@pytest.mark.parametrize(
    ("rate", "quantity", "total"),
    [
        (GRADUATED, 0, Decimal(0)),
        (GRADUATED, 1_000, 4_000 * MICRO),
        (GRADUATED, 1_001, 4_002 * MICRO),
        (GRADUATED, 7_000, (4_000 + 8_000 + 2_000) * MICRO),
        (VOLUME, 1_000, 4_000 * MICRO),
        (VOLUME, 1_001, 2_002 * MICRO),
        (VOLUME, 7_000, 7_000 * MICRO),
        (PACKAGE, 0, Decimal(0)),
        (PACKAGE, 1, Decimal("0.25")),
        (PACKAGE, 1_000, Decimal("0.25")),
        (PACKAGE, 1_001, Decimal("0.50")),
        (Rate(Pricing.FLAT, flat(3).tiers, minimum=Decimal(2)), 0, Decimal(0)),
        (Rate(Pricing.FLAT, flat(3).tiers, minimum=Decimal(2)), 1, Decimal(2)),
        (Rate(Pricing.FLAT, flat(3).tiers, minimum=Decimal(2)), 1_000_000, Decimal(3)),
    ],
)
def test_each_model_of_price_has_its_total(rate: Rate, quantity: int, total: Decimal) -> None:
    assert rate.total(quantity) == total


def test_volume_that_makes_the_month_cheaper_is_given_back() -> None:
    assert VOLUME.between(1_000, 1) == -1_998 * MICRO


def test_what_is_given_back_of_nothing_is_0_without_a_sign() -> None:
    volume = Rate(Pricing.VOLUME, (Tier(10, Decimal(2)), Tier(None, Decimal(1))))
    free = card(flat("1"), flat("1"), volume, multiplier="0")

    amount = free.amount(Meter.OUTPUT, 1, before=10)

    assert volume.between(10, 1) < 0
    assert (amount, amount.is_signed()) == (0, False)


def test_the_worst_cost_counts_the_dearer_input_and_every_minimum() -> None:
    rates = card(flat("1"), flat("3"), Rate(Pricing.FLAT, flat(2).tiers, minimum=Decimal(5)), discount="0.5")
    assert worst_cost(rates, 10, 4) == (30 + 8) * MICRO / 2 + Decimal("2.5")


CENTS = st.decimals(min_value=0, max_value=100, places=2)
STEPS = st.lists(st.integers(1, 3_000), min_size=1, max_size=3, unique=True).map(sorted)


@st.composite
def any_rate(draw: st.DrawFn) -> Rate:
    pricing = draw(st.sampled_from(Pricing))
    minimum = draw(st.sampled_from([Decimal(0), Decimal("0.01")]))
    if pricing in (Pricing.FLAT, Pricing.PACKAGE):
        size = draw(st.integers(1, 2_000)) if pricing is Pricing.PACKAGE else 0
        return Rate(pricing, (Tier(None, draw(CENTS)),), size, minimum)
    ends = [*draw(STEPS), None]
    prices = draw(st.lists(CENTS, min_size=len(ends), max_size=len(ends)))
    if pricing is Pricing.VOLUME:
        prices.sort(reverse=True)
    return Rate(pricing, tuple(Tier(end, price) for end, price in zip(ends, prices, strict=True)), 0, minimum)


@given(
    st.tuples(any_rate(), any_rate(), any_rate()),
    st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 2_000), st.integers(0, 2_000)), min_size=1, max_size=5),
)
def test_events_sum_to_the_total_of_the_month_and_never_pass_their_bound(
    rates: tuple[Rate, Rate, Rate], used: list[tuple[int, int, int]]
) -> None:
    month = card(*rates, discount="0.25", multiplier="1.5")
    before = dict.fromkeys(Meter, 0)
    spent = []
    for uncached, cached, output in used:
        usage = TokenUsage(uncached + cached, cached, output)
        cost = expected_cost(month, usage, before)
        assert cost <= worst_cost(month, usage.num_prompt_tokens, output)
        spent.append(cost)
        for meter, quantity in usage.quantities():
            before[meter] += quantity
    part = Decimal("1.125")
    assert sum(spent) == sum(rate.total(before[meter]) * part for meter, rate in month.by_meter.items())
    prompts, outputs = before[Meter.INPUT_UNCACHED] + before[Meter.INPUT_CACHED], before[Meter.OUTPUT]
    assert sum(spent) <= worst_cost(month, prompts, outputs)
