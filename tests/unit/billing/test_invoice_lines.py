from __future__ import annotations

import os
from decimal import Decimal
from fractions import Fraction
from random import Random

from invoice_samples import CURRENCIES, MONTH, random_charges, random_items

from pipeline.billing.currencies import minor_decimals
from pipeline.billing.documents import make_lines
from pipeline.tables import LineKind

#: More by this variable.
NUM_INVOICES = int(os.environ.get("INVOICE_EXAMPLES", "10000"))


def half_away_from_zero(amount: Fraction, decimals: int) -> Fraction:
    """The rule once more, in other words: fractions have no digits to lose."""
    scaled = abs(amount) * 10**decimals
    rounded = (2 * scaled.numerator + scaled.denominator) // (2 * scaled.denominator)
    return Fraction(rounded if amount >= 0 else -rounded, 10**decimals)


def test_ten_thousand_random_invoices_add_up_to_the_minor_unit() -> None:
    for seed in range(NUM_INVOICES):
        random = Random(seed)
        currency = random.choice(CURRENCIES)
        decimals = minor_decimals(currency)
        items = random_items(random, random.randint(0, 5))
        charges = random_charges(random, random.randint(0, 2))
        exact = sum((Fraction(part.exact) for part in [*items, *charges]), Fraction(0))

        lines, placed = make_lines(items, charges, MONTH, currency)

        *others, rounding = lines
        assert rounding.kind is LineKind.ROUNDING
        total = sum((Fraction(line.amount) for line in lines), Fraction(0))
        assert total == half_away_from_zero(exact, decimals), seed
        assert sum((Fraction(line.exact) for line in lines), Fraction(0)) == exact, seed
        for line in others:
            assert Fraction(line.amount) == half_away_from_zero(Fraction(line.exact), decimals), seed
            if line.quantity is not None:
                of_line = [item for item in placed if item.position == line.position]
                assert sum(item.quantity for item in of_line) == line.quantity, seed
                assert sum((Fraction(item.exact) for item in of_line), Fraction(0)) == Fraction(line.exact), seed
        assert sorted(map(id_of, placed)) == sorted(map(id_of, items)), seed
        # No digit beyond the minor unit is left anywhere.
        assert all(-line.amount.normalize().as_tuple().exponent <= decimals for line in lines), seed


def id_of(item: object) -> tuple[str, ...]:
    return tuple(str(getattr(item, name)) for name in ("day", "api_key_id", "model", "meter", "exact", "quantity"))


def test_half_is_rounded_away_from_zero_in_each_line_and_the_rounding_is_visible() -> None:
    charges = random_charges(Random(1), 3)
    halves = [type(charge)(**{**vars(charge), "exact": Decimal("0.005")}) for charge in charges]

    lines, _ = make_lines([], halves, MONTH, "USD")
    negative, _ = make_lines([], [type(c)(**{**vars(c), "exact": Decimal("-0.005")}) for c in halves], MONTH, "USD")

    # Three halves are 0.015, which is 0.02; the lines say 0.03.
    assert [line.amount for line in lines] == [Decimal("0.01")] * 3 + [Decimal("-0.01")]
    assert [line.amount for line in negative] == [Decimal("-0.01")] * 3 + [Decimal("0.01")]
