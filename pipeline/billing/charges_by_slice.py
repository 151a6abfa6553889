"""What the answers of a recording took, added up by slice: one price holds for all of a slice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

from pipeline.billing.pricing import exact_sum
from pipeline.billing.rating import Rates, TokenUsage
from pipeline.tables.billing import Meter


class Answer(NamedTuple):
    """A result that is being written, and what it took."""

    request_id: int
    slice_id: int
    tenant_id: str
    model: str
    usage: TokenUsage


@dataclass(slots=True)
class SliceCharge:
    """What the answers of one slice took, and cost together."""

    slice_id: int
    tenant_id: str
    model: str
    #: None where nothing prices them.
    currency: str | None
    request_ids: list[int] = field(default_factory=list)
    engine_ms: int = 0
    #: Of answers that have the meter, and their tokens.
    num_events: dict[Meter, int] = field(default_factory=dict)
    num_tokens: dict[Meter, int] = field(default_factory=dict)
    amounts: dict[Meter, Decimal] = field(default_factory=dict)

    @property
    def amount(self) -> Decimal:
        return exact_sum(self.amounts.values())


def add_up(answers: Iterable[Answer], rates: Mapping[int, Rates]) -> list[SliceCharge]:
    """By slice, without amounts; `rates` by slice."""
    by_slice: dict[int, list[Answer]] = {}
    for answer in answers:
        by_slice.setdefault(answer.slice_id, []).append(answer)
    return [_add_up(of_slice, rates.get(slice_id)) for slice_id, of_slice in by_slice.items()]


def _add_up(answers: list[Answer], rates: Rates | None) -> SliceCharge:
    first, usages = answers[0], [answer.usage for answer in answers]
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
        first.slice_id,
        first.tenant_id,
        first.model,
        None if rates is None else rates.currency,
        [answer.request_id for answer in answers],
        sum([usage.engine_ms for usage in usages]),
        num_events,
        num_tokens,
    )
