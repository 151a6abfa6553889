from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.billing.rating import NotPricedError, Rates, TokenUsage, exact_sum, rates_of
from pipeline.tables.billing import Meter

PRICES = st.decimals(min_value=0, max_value=10**13, places=6)
DISCOUNTS = st.decimals(min_value=0, max_value=1, places=3)
QUANTITIES = st.integers(min_value=0, max_value=10**10)


def rates(price: Decimal, discount: Decimal) -> Rates:
    return Rates(1, "USD", price, price, price, discount)


@given(PRICES, DISCOUNTS, QUANTITIES)
def test_an_amount_is_exact_and_fits_its_column(price: Decimal, discount: Decimal, quantity: int) -> None:
    amount = rates(price, discount).amount(Meter.OUTPUT, quantity)
    assert Fraction(amount) == quantity * Fraction(price) / 1_000_000 * (1 - Fraction(discount))
    exponent = amount.as_tuple().exponent
    assert isinstance(exponent, int)
    assert exponent >= -15


def test_each_meter_has_its_price() -> None:
    card = Rates(1, "USD", Decimal("0.10"), Decimal("0.05"), Decimal("0.40"), Decimal("0.5"))
    assert card.amount(Meter.INPUT_UNCACHED, 3) == Decimal("0.00000015")
    assert card.amount(Meter.INPUT_CACHED, 3) == Decimal("0.000000075")
    assert card.amount(Meter.OUTPUT, 3) == Decimal("0.0000006")


def test_cached_tokens_are_counted_apart_and_only_where_there_are_some() -> None:
    assert TokenUsage(10, 0, 5).quantities() == [(Meter.INPUT_UNCACHED, 10), (Meter.OUTPUT, 5)]
    assert TokenUsage(10, 4, 5).quantities() == [(Meter.INPUT_UNCACHED, 6), (Meter.INPUT_CACHED, 4), (Meter.OUTPUT, 5)]


@given(st.lists(st.decimals(min_value=0, max_value=10**9, places=15)))
def test_a_sum_loses_nothing(amounts: list[Decimal]) -> None:
    assert Fraction(exact_sum(amounts)) == sum(map(Fraction, amounts))


def test_a_model_without_a_rate_card_is_named() -> None:
    with pytest.raises(NotPricedError, match="'tiny' has no rate card"):
        rates_of("tiny", None)
