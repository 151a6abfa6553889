"""What usage costs: exact decimals, by the rates of one card for one model and service class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property

from pipeline.billing.pricing import EXACT, PER_TOKEN, ZERO, Rate, exact_sum
from pipeline.errors import PipelineError
from pipeline.tables.batches import ServiceClass
from pipeline.tables.billing import Meter
from pipeline.tables.rates import Pricing

__all__ = ["NotPricedError", "Rates", "TokenUsage", "exact_sum", "expected_cost", "worst_cost"]


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

    @property
    def num_uncached_tokens(self) -> int:
        """Prompt tokens that were computed."""
        return self.num_prompt_tokens - self.num_cached_tokens

    def quantities(self) -> list[tuple[Meter, int]]:
        """The meters that an answer is billed by. It always has uncached input and output."""
        quantities = [
            (Meter.INPUT_UNCACHED, self.num_uncached_tokens),
            (Meter.OUTPUT, self.num_completion_tokens),
        ]
        if self.num_cached_tokens:
            quantities.insert(1, (Meter.INPUT_CACHED, self.num_cached_tokens))
        return quantities


@dataclass(frozen=True)
class Rates:
    """What the meters of one model cost by one version of a card, in one service class."""

    rate_card_id: int
    plan: str
    version: int
    currency: str
    service_class: ServiceClass
    #: Of every meter.
    by_meter: Mapping[Meter, Rate] = field(hash=False)
    #: Part that a batch saves, 0 to 1.
    batch_discount: Decimal = ZERO
    class_multiplier: Decimal = Decimal(1)

    @cached_property
    def multiplier(self) -> Decimal:
        """What every price is multiplied by."""
        return EXACT.multiply(EXACT.subtract(Decimal(1), self.batch_discount), self.class_multiplier)

    @cached_property
    def _flat(self) -> dict[Meter, Decimal]:
        """What one token costs, of the meters where it always costs the same."""
        part = EXACT.multiply(PER_TOKEN, self.multiplier)
        return {
            meter: EXACT.multiply(rate.tiers[0].price, part) for meter, rate in self.by_meter.items() if rate.is_flat
        }

    def needs_quantity_before(self, meter: Meter) -> bool:
        """Whether the price of an event depends on what the tenant has used before in the month."""
        return meter not in self._flat

    def amount(self, meter: Meter, quantity: int, before: int = 0) -> Decimal:
        """What `quantity` tokens cost after `before` of the same month, card, model, meter and class; exactly."""
        if meter in self._flat:
            return EXACT.multiply(self._flat[meter], Decimal(quantity))
        # Less than nothing times a multiplier of 0 would be -0, which no database holds: with 0 added it is 0.
        return EXACT.add(EXACT.multiply(self.by_meter[meter].between(before, quantity), self.multiplier), ZERO)

    def bound(self, meter: Meter, quantity: int) -> Decimal:
        """The most that so many tokens can cost, in one event or in many, wherever in the month they fall."""
        return EXACT.multiply(self.by_meter[meter].bound(quantity), self.multiplier)


def worst_cost(rates: Rates, prompt_tokens: int, max_output_tokens: int) -> Decimal:
    """An upper bound under any hit of the cache and any tier; holds for one request and for many taken together.

    So the bound of a slice is that of its sums. A minimum of the month is part of each bound.
    """
    return exact_sum([_worst_input(rates, prompt_tokens), rates.bound(Meter.OUTPUT, max_output_tokens)])


def expected_cost(rates: Rates, usage: TokenUsage, before: Mapping[Meter, int] | None = None) -> Decimal:
    """What `usage` costs after what the tenant has used `before` in the month; nothing, if not said."""
    return exact_sum(
        rates.amount(meter, quantity, (before or {}).get(meter, 0)) for meter, quantity in usage.quantities()
    )


def _worst_input(rates: Rates, prompt_tokens: int) -> Decimal:
    inputs = (Meter.INPUT_UNCACHED, Meter.INPUT_CACHED)
    bounds = [rates.bound(meter, prompt_tokens) for meter in inputs]
    # A price per token is worst where all tokens are of the dearer meter. Packages and minimums may be due twice.
    is_linear = all(
        rates.by_meter[meter].pricing is not Pricing.PACKAGE and not rates.by_meter[meter].minimum for meter in inputs
    )
    return max(bounds) if is_linear else exact_sum(bounds)
