"""What an answer costs whom: usage events, their prices, and the ledger, in the transaction of the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

import structlog
from psycopg import Cursor

from pipeline.billing.flat_lines import columns, is_flat, write_flat_lines
from pipeline.billing.pricing import EXACT, ZERO, exact_sum
from pipeline.billing.rated_lines import Event, make_lines, write_lines
from pipeline.billing.rating import Rates, TokenUsage
from pipeline.tables.arrays import numbers
from pipeline.tables.billing import Meter

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """A result that was just written, and what it took."""

    request_id: int
    slice_id: int
    batch_id: str
    tenant_id: str
    model: str
    usage: TokenUsage


@dataclass(slots=True)
class SliceCharge:
    """What the answers of one slice took, and cost together."""

    slice_id: int
    #: None where nothing prices them.
    currency: str | None
    num_requests: int = 0
    engine_ms: int = 0
    #: Of events and their tokens.
    num_events: dict[Meter, int] = field(default_factory=dict)
    num_tokens: dict[Meter, int] = field(default_factory=dict)
    amounts: dict[Meter, Decimal] = field(default_factory=dict)

    @property
    def amount(self) -> Decimal:
        return exact_sum(self.amounts.values())


# A request always has events of uncached input and output.
_INSERT_USAGE: Final = """
    INSERT INTO usage_events (request_id, meter, quantity, tenant_id, project_id, api_key_id, batch_id, service_class,
                              model, group_id, engine_ms)
    SELECT o.request_id, m.meter, m.quantity, s.tenant_id, b.project_id, b.api_key_id, s.batch_id, b.service_class,
           s.model, s.group_id, m.engine_ms
    FROM unnest(%(ids)s::bigint[], %(slice_ids)s::bigint[], %(uncached)s::bigint[], %(cached)s::bigint[],
                %(outputs)s::bigint[], %(engine_ms)s::bigint[])
        AS o (request_id, slice_id, uncached, cached, output, engine_ms)
    JOIN slices s ON s.id = o.slice_id JOIN batches b ON b.id = s.batch_id
    -- Milliseconds of the output event alone, so that sums are right.
    CROSS JOIN LATERAL (VALUES
        ('input_uncached', o.uncached, 0), ('input_cached', o.cached, 0), ('output', o.output, o.engine_ms)
    ) AS m (meter, quantity, engine_ms)
    WHERE m.meter <> 'input_cached' OR m.quantity > 0
"""


def charge(cursor: Cursor[Any], answers: Sequence[Answer], rates: Mapping[int, Rates]) -> list[SliceCharge]:
    """Meter and rate `answers`, and post one ledger transaction per tenant, in the transaction of `cursor`.

    `rates` by slice; answers of a slice without are metered alone, and unrated until somebody prices them. Waits for
    no answer of the database, so that it can be part of a pipeline, but for rates that depend on what was used before.
    Events are keyed by request and meter, so a second call for the same answers is a UniqueViolation; the caller
    passes new ones alone.
    """
    _insert_usage(cursor, answers)
    _report_unrated([answer for answer in answers if answer.slice_id not in rates])
    flat_slices = {slice_id for slice_id, one in rates.items() if is_flat(one)}
    flat = [answer for answer in answers if answer.slice_id in flat_slices]
    if flat:
        write_flat_lines(cursor, flat, rates, source="results")
    stepped = [answer for answer in answers if answer.slice_id in rates and answer.slice_id not in flat_slices]
    stepped.sort(key=lambda answer: answer.request_id)
    lines = make_lines(cursor, [(event, rates[answer.slice_id]) for answer in stepped for event in _events(answer)])
    write_lines(cursor, lines, source="results")
    charges = _count(answers, rates)
    _add_flat_amounts(charges, flat, rates)
    slice_of = {answer.request_id: answer.slice_id for answer in stepped}
    for line in lines:
        amounts = charges[slice_of[line.event.request_id]].amounts
        amounts[line.event.meter] = EXACT.add(amounts.get(line.event.meter, ZERO), line.amount)
    return list(charges.values())


def _count(answers: Sequence[Answer], rates: Mapping[int, Rates]) -> dict[int, SliceCharge]:
    """By slice, without amounts."""
    charges: dict[int, SliceCharge] = {}
    for answer in answers:
        charge = charges.get(answer.slice_id)
        if charge is None:
            priced = rates.get(answer.slice_id)
            charge = charges[answer.slice_id] = SliceCharge(answer.slice_id, priced.currency if priced else None)
        charge.num_requests += 1
        charge.engine_ms += answer.usage.engine_ms
        for meter, quantity in answer.usage.quantities():
            charge.num_events[meter] = charge.num_events.get(meter, 0) + 1
            charge.num_tokens[meter] = charge.num_tokens.get(meter, 0) + quantity
    return charges


def _add_flat_amounts(charges: Mapping[int, SliceCharge], flat: Sequence[Answer], rates: Mapping[int, Rates]) -> None:
    for slice_id in {answer.slice_id for answer in flat}:
        charge = charges[slice_id]
        for meter, num_tokens in charge.num_tokens.items():
            charge.amounts[meter] = rates[slice_id].amount(meter, num_tokens)


def _events(answer: Answer) -> list[Event]:
    return [
        Event(answer.request_id, meter, quantity, answer.tenant_id, answer.model)
        for meter, quantity in answer.usage.quantities()
    ]


def _insert_usage(cursor: Cursor[Any], answers: Sequence[Answer]) -> None:
    cursor.execute(
        _INSERT_USAGE,
        {
            "ids": numbers(answer.request_id for answer in answers),
            "slice_ids": numbers(answer.slice_id for answer in answers),
            "engine_ms": numbers(answer.usage.engine_ms for answer in answers),
            **columns(answer.usage for answer in answers),
        },
    )


def _report_unrated(answers: Sequence[Answer]) -> None:
    for model in sorted({answer.model for answer in answers}):
        requests = sorted(answer.request_id for answer in answers if answer.model == model)
        log.error(
            "usage is unrated: no rate card prices this model; publish one, then run `ryzanstein bill rate`",
            model=model,
            requests=requests,
        )
