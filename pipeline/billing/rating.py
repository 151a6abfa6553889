"""What a usage event costs: exact decimals, from the rate card that is in effect when its result is recorded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal, Inexact
from functools import cached_property, reduce
from typing import Any, Final

from pipeline.errors import PipelineError
from pipeline.tables.billing import Meter

#: Holds every amount exactly: 12 digits of quantity, 20 of price, 4 of discount. Rounding is an error, not a habit.
_EXACT = Context(prec=60, traps=[Inexact])
#: Prices are of this many tokens.
_PER_TOKEN = Decimal("0.000001")


#: The rate card of %(model)s that is in effect by the database's clock.
RATE_CARD: Final = """
    SELECT id, currency, input_price, cached_input_price, output_price, batch_discount FROM rate_cards
    WHERE model = %(model)s AND effective_from <= now() ORDER BY effective_from DESC LIMIT 1
"""


class NotPricedError(PipelineError):
    """A model has no rate card in effect."""


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens that one request was answered with."""

    num_prompt_tokens: int
    num_cached_tokens: int
    #: Over all choices.
    num_completion_tokens: int
    #: The request's share of its engine's time, in milliseconds.
    engine_ms: int = 0

    def quantities(self) -> list[tuple[Meter, int]]:
        """The meters that a usage event is written for. A request always has uncached input and output."""
        quantities = [
            (Meter.INPUT_UNCACHED, self.num_prompt_tokens - self.num_cached_tokens),
            (Meter.OUTPUT, self.num_completion_tokens),
        ]
        if self.num_cached_tokens:
            quantities.insert(1, (Meter.INPUT_CACHED, self.num_cached_tokens))
        return quantities


@dataclass(frozen=True)
class Rates:
    """A rate card as rating needs it. Prices are of 1,000,000 tokens."""

    rate_card_id: int
    currency: str
    input_price: Decimal
    cached_input_price: Decimal
    output_price: Decimal
    batch_discount: Decimal

    @cached_property
    def unit_prices(self) -> dict[Meter, Decimal]:
        return {
            Meter.INPUT_UNCACHED: self.input_price,
            Meter.INPUT_CACHED: self.cached_input_price,
            Meter.OUTPUT: self.output_price,
        }

    @cached_property
    def _token_prices(self) -> dict[Meter, Decimal]:
        """What one token costs after the discount."""
        part = _EXACT.multiply(_PER_TOKEN, _EXACT.subtract(Decimal(1), self.batch_discount))
        return {meter: _EXACT.multiply(price, part) for meter, price in self.unit_prices.items()}

    def amount(self, meter: Meter, quantity: int) -> Decimal:
        """quantity x price / 1,000,000 x (1 - batch_discount), exactly."""
        return _EXACT.multiply(self._token_prices[meter], Decimal(quantity))


def exact_sum(amounts: Iterable[Decimal]) -> Decimal:
    """The sum of amounts, which is never rounded."""
    return reduce(_EXACT.add, amounts, Decimal(0))


def rates_of(model: str, row: Sequence[Any] | None) -> Rates:
    """From a row of RATE_CARD. Raises NotPricedError where there is none."""
    if row is None:
        raise NotPricedError(f"Model {model!r} has no rate card in effect. Add one with `ryzanstein rates set`.")
    return Rates(*row)
