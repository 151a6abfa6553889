"""Prices as functions of the quantity of a month: an event pays the difference that it makes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Context, Decimal, Inexact
from functools import reduce
from typing import Final

from pipeline.tables.rates import Pricing

#: Holds every amount exactly: 19 digits of quantity, 20 of price, 7 of multipliers. Rounding is an error, not a habit.
EXACT: Final = Context(prec=60, traps=[Inexact])
#: Prices are of this many tokens.
PER_TOKEN: Final = Decimal("0.000001")
ZERO: Final = Decimal(0)


@dataclass(frozen=True, slots=True)
class Tier:
    """What 1,000,000 tokens cost up to a quantity of the month, that quantity included."""

    #: None: without end.
    up_to: int | None
    price: Decimal


@dataclass(frozen=True, slots=True)
class Rate:
    """What one meter of one model costs, before multipliers."""

    pricing: Pricing
    #: By rising quantity; the last is without end. One alone where the price is flat or of a package.
    tiers: tuple[Tier, ...]
    #: Tokens, where the price is of a package.
    package_size: int = 0
    #: Least that a month costs in which anything is used.
    minimum: Decimal = ZERO

    @property
    def is_flat(self) -> bool:
        """Whether the price of an event needs nothing to be known of the month."""
        return self.pricing is Pricing.FLAT and not self.minimum

    @property
    def unit_price(self) -> Decimal | None:
        """Of 1,000,000 tokens, or of one package; None where it depends on the quantity."""
        return self.tiers[0].price if self.pricing in (Pricing.FLAT, Pricing.PACKAGE) else None

    def total(self, quantity: int) -> Decimal:
        """A(quantity): what the tokens of a month cost together."""
        if quantity == 0:
            return ZERO
        return max(self.minimum, self._total(quantity))

    def between(self, before: int, quantity: int) -> Decimal:
        """What `quantity` more tokens cost after `before` of them: A(before + quantity) - A(before).

        Below zero where volume has made all tokens of the month cheaper.
        """
        return EXACT.subtract(self.total(before + quantity), self.total(before))

    def bound(self, quantity: int) -> Decimal:
        """The most that so many tokens can cost, in one event or in many, wherever in the month they fall."""
        if quantity == 0:
            return ZERO
        if self.pricing is Pricing.PACKAGE:
            most = self._total(quantity)  # packages that are begun already only make it less
        else:  # volume prices never rise, or nothing could be said of them
            most = _times(quantity, max(tier.price for tier in self.tiers))
        return EXACT.add(most, self.minimum)

    def _total(self, quantity: int) -> Decimal:
        if self.pricing is Pricing.PACKAGE:
            num_packages = -(-quantity // self.package_size)
            return EXACT.multiply(Decimal(num_packages), self.tiers[0].price)
        if self.pricing is Pricing.GRADUATED:
            return exact_sum(_times(num_tokens, price) for num_tokens, price in self._portions(quantity))
        return _times(quantity, self._price_of(quantity))

    def _portions(self, quantity: int) -> Iterable[tuple[int, Decimal]]:
        begin = 0
        for tier in self.tiers:
            end = quantity if tier.up_to is None else min(quantity, tier.up_to)
            if end > begin:
                yield end - begin, tier.price
                begin = end

    def _price_of(self, quantity: int) -> Decimal:
        return next(tier.price for tier in self.tiers if tier.up_to is None or quantity <= tier.up_to)


def exact_sum(amounts: Iterable[Decimal]) -> Decimal:
    """The sum of amounts, which is never rounded."""
    return reduce(EXACT.add, amounts, ZERO)


def _times(num_tokens: int, price: Decimal) -> Decimal:
    return EXACT.multiply(Decimal(num_tokens), EXACT.multiply(price, PER_TOKEN))
