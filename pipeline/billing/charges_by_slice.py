"""What the answers of a recording took, added up by slice: one price holds for all of a slice."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

from pipeline.billing.pricing import exact_sum
from pipeline.billing.rating import Rates, TokenUsage
from pipeline.tables.billing import Meter


class SliceAnswers(NamedTuple):
    """Answers of one slice that are being written, and what each of them took."""

    slice_id: int
    tenant_id: str
    model: str
    #: In step with `usages`.
    request_ids: list[int]
    usages: list[TokenUsage]


@dataclass(slots=True)
class SliceCharge:
    """What answers of one slice took, and cost together."""

    answers: SliceAnswers
    #: None where nothing prices them.
    currency: str | None
    engine_ms: int = 0
    #: Of answers that have the meter, and their tokens.
    num_events: dict[Meter, int] = field(default_factory=dict)
    num_tokens: dict[Meter, int] = field(default_factory=dict)
    amounts: dict[Meter, Decimal] = field(default_factory=dict)

    @property
    def slice_id(self) -> int:
        return self.answers.slice_id

    @property
    def amount(self) -> Decimal:
        return exact_sum(self.amounts.values())


def add_up(answers: SliceAnswers, rates: Rates | None) -> SliceCharge:
    """Without amounts."""
    usages = answers.usages
    cached = [usage.num_cached_tokens for usage in usages if usage.num_cached_tokens]
    num_cached = sum(cached)
    # Every answer has uncached input and output.
    num_events = {Meter.INPUT_UNCACHED: len(usages), Meter.OUTPUT: len(usages)}
    num_tokens = {
        Meter.INPUT_UNCACHED: sum([usage.num_prompt_tokens for usage in usages]) - num_cached,
        Meter.OUTPUT: sum([usage.num_completion_tokens for usage in usages]),
    }
    if cached:
        num_events[Meter.INPUT_CACHED], num_tokens[Meter.INPUT_CACHED] = len(cached), num_cached
    return SliceCharge(
        answers,
        None if rates is None else rates.currency,
        sum([usage.engine_ms for usage in usages]),
        num_events,
        num_tokens,
    )
