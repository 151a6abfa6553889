from __future__ import annotations

import contextlib
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.billing.card_files import read_card_file, read_overrides_file
from pipeline.billing.pricing import Rate, Tier
from pipeline.billing.rate_cards import RateCardError
from pipeline.tables import Meter, Pricing

CARD = """
plan: gold
currency: EUR
effective_from: 2026-12-01T00:00:00Z
batch_discount: 0.5
multipliers: {priority: 1.5}
models:
  tiny: {input: 0.10, output: {graduated: [{up_to: 1000, price: 0.4}, {price: 0.3}], minimum: 5}}
  large:
    input: {volume: [{up_to: 10, price: 2}, {price: 1.5}]}
    cached_input: {price: 1}
    output: {package: {size: 1000000, price: 4}}
"""


def test_a_card_is_read_with_every_digit() -> None:
    card = read_card_file(CARD)
    rates = card.rates()
    assert (card.plan, card.currency, card.batch_discount) == ("gold", "EUR", Decimal("0.5"))
    assert (card.multipliers.priority, card.multipliers.flex) == (Decimal("1.5"), 1)
    assert rates["tiny"][Meter.INPUT_CACHED] == rates["tiny"][Meter.INPUT_UNCACHED]
    assert str(rates["tiny"][Meter.INPUT_UNCACHED].tiers[0].price) == "0.10"
    tiers = (Tier(1000, Decimal("0.4")), Tier(None, Decimal("0.3")))
    assert rates["tiny"][Meter.OUTPUT] == Rate(Pricing.GRADUATED, tiers, minimum=Decimal(5))
    assert rates["large"][Meter.INPUT_UNCACHED].pricing is Pricing.VOLUME
    assert rates["large"][Meter.OUTPUT] == Rate(Pricing.PACKAGE, (Tier(None, Decimal(4)),), 1_000_000)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("plan: gold", "plan: Gold plan", "plan: "),
        ("plan: gold", "plam: gold", "plan: Field required"),
        ("currency: EUR", "currency: euro", "'euro' is no currency"),
        ("00:00:00Z", "00:00:00", "effective_from"),
        ("batch_discount: 0.5", "batch_discount: 1.01", "batch_discount"),
        ("batch_discount: 0.5", "discount: 0.5", "discount: Extra inputs"),
        ("priority: 1.5", "priority: 1.0005", "multipliers.priority"),
        ("input: 0.10,", "input: -1,", "greater than or equal to 0"),
        ("input: 0.10,", "input: .nan,", "models.tiny.input"),
        ("input: 0.10,", "input: 0.0000001,", "6 decimal places"),
        ("input: 0.10,", "", "models.tiny: give input and output"),
        ("input: 0.10,", "input: 0.10, input: 0.2,", "'input' is given twice"),
        ("{price: 0.3}]", "{up_to: 900, price: 0.3}]", "the last tier has none"),
        ("{up_to: 1000, price: 0.4}", "{price: 0.4}", "must rise"),
        ("graduated: [{up_to: 1000, price: 0.4}, {price: 0.3}]", "graduated: []", "graduated has no tier"),
        ("price: 1.5}]", "price: 2.5}]", "prices of a volume must not rise"),
        ("{price: 1}", "{price: 1, volume: [{price: 1}]}", "there is price and volume"),
        ("{price: 1}", "{minimum: 1}", "there is none"),
        ("size: 1000000", "size: 0", "greater than 0"),
    ],
)
def test_what_is_no_card_is_refused_and_says_where(old: str, new: str, message: str) -> None:
    assert old in CARD
    with pytest.raises(RateCardError, match=message):
        read_card_file(CARD.replace(old, new, 1))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "- 1",
        "a: [",
        "models: {tiny: {output: 1}}\nx: 1",
        "models: " + "[" * 5_000,
        "models: " + "{a: " * 5_000 + "1" + "}" * 5_000,
        "a: &a [x, x]\nmodels: {tiny: *a}",
        "? [a]\n: b",
        "? {a: b}\n: c",
        "models: {tiny: {output: !!python/object:os.system {}}}",
        "\x00",
    ],
)
def test_what_is_no_mapping_of_overrides_is_refused(content: str) -> None:
    with pytest.raises(RateCardError):
        read_overrides_file(content)


def test_a_card_whose_amounts_need_more_digits_than_are_kept_is_refused() -> None:
    exact = CARD.replace("input: 0.10,", "input: 0.000001,").replace("discount: 0.5", "discount: 0.125")
    with pytest.raises(RateCardError, match=r"input_uncached: .* needs more than 15 decimals"):
        read_card_file(exact)
    read_card_file(exact.replace("priority: 1.5", "priority: 2"))


@given(st.text(max_size=60) | st.text("abc:{}[]&*!?-,#|>'\" \n\t0123456789.", max_size=60))
def test_whatever_is_read_is_a_card_or_is_refused(content: str) -> None:
    for part in (content, CARD + content, CARD.replace("0.10", content, 1)):
        with contextlib.suppress(RateCardError):
            read_card_file(part)
