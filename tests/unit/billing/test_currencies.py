from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.billing.currencies import exact_text, minor_decimals, round_to_minor, rounding_of
from pipeline.billing.reports import Month
from pipeline.errors import UserError


@pytest.mark.parametrize(
    ("amount", "currency", "rounded"),
    [
        ("0.005", "USD", "0.01"),
        ("0.004999999999999", "USD", "0.00"),
        ("-0.005", "USD", "-0.01"),
        ("2.675", "EUR", "2.68"),
        ("0.5", "JPY", "1"),
        ("1.0005", "KWD", "1.001"),
        ("99999999999999999999.995000000000000", "USD", "100000000000000000000.00"),
    ],
)
def test_amounts_are_rounded_half_away_from_zero(amount: str, currency: str, rounded: str) -> None:
    assert str(round_to_minor(Decimal(amount), currency)) == rounded


@given(st.decimals(allow_nan=False, allow_infinity=False, places=15, min_value=-(10**20), max_value=10**20))
def test_exact_and_rounding_make_the_total(amount: Decimal) -> None:
    for currency in ("USD", "JPY", "KWD"):
        total = round_to_minor(amount, currency)
        rounding = rounding_of(amount, currency)
        assert amount + rounding == total
        assert abs(rounding) * 2 <= Decimal(1).scaleb(-minor_decimals(currency))
        assert Decimal(exact_text(amount, currency)) == amount


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [("0.000001500000000", "USD", "0.0000015"), ("1E+1", "USD", "10.00"), ("0E-15", "JPY", "0"), ("3", "KWD", "3.000")],
)
def test_exact_amounts_are_shown_without_needless_zeros(amount: str, currency: str, text: str) -> None:
    assert exact_text(Decimal(amount), currency) == text


def test_a_month_is_one_in_utc() -> None:
    december = Month.parse("2026-12")
    assert (december.start.isoformat(), december.end.isoformat()) == (
        "2026-12-01T00:00:00+00:00",
        "2027-01-01T00:00:00+00:00",
    )
    assert str(december) == "2026-12"
    assert Month.of(december.start) == december


@pytest.mark.parametrize(
    "text", ["", "2026", "2026-13", "2026-00", "2026-1", "0000-01", "26-01", "2026-11-01", "9999-12"]
)
def test_a_month_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no month"):
        Month.parse(text)


@pytest.mark.parametrize(("amount", "currency", "text"), [("-0.4", "JPY", "0"), ("-0.004", "USD", "0.00")])
def test_what_is_rounded_to_nothing_has_no_sign(amount: str, currency: str, text: str) -> None:
    assert exact_text(round_to_minor(Decimal(amount), currency), currency) == text
