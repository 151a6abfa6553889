"""What an answer costs whom: usage events, their prices, and the ledger, in the transaction of the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import structlog
from psycopg import Cursor

from pipeline.billing.pricing import exact_sum
from pipeline.billing.rated_lines import Event, make_lines, write_lines
from pipeline.billing.rating import Rates, TokenUsage
from pipeline.tables.arrays import numbers, words
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


@dataclass(frozen=True, slots=True)
class Charge:
    """What an answer costs."""

    answer: Answer
    #: None of one that nothing prices.
    amount: Decimal | None
    currency: str | None
    #: What `amount` is the sum of.
    by_meter: Mapping[Meter, Decimal]


_INSERT_USAGE: Final = """
    INSERT INTO usage_events (request_id, meter, quantity, tenant_id, project_id, api_key_id, batch_id, service_class,
                              model, group_id, engine_ms)
    SELECT o.request_id, o.meter, o.quantity, s.tenant_id, b.project_id, b.api_key_id, s.batch_id, b.service_class,
           s.model, s.group_id, o.engine_ms
    FROM unnest(%(ids)s::bigint[], %(slice_ids)s::bigint[], %(meters)s::text[],
                %(quantities)s::bigint[], %(engine_ms)s::bigint[])
        AS o (request_id, slice_id, meter, quantity, engine_ms)
    JOIN slices s ON s.id = o.slice_id JOIN batches b ON b.id = s.batch_id
"""


def charge(cursor: Cursor[Any], answers: Sequence[Answer], rates: Mapping[str, Rates]) -> list[Charge]:
    """Meter and rate `answers`, and post one ledger transaction per tenant, in the transaction of `cursor`.

    `rates` by batch; answers of a batch without are metered alone, and unrated until somebody prices them. Waits for
    no answer of the database, so that it can be part of a pipeline, but for rates that depend on what was used before.
    Events are keyed by request and meter, so a second call for the same answers is a UniqueViolation; the caller
    passes new ones alone.
    """
    _insert_usage(cursor, answers)
    priced = sorted((answer for answer in answers if answer.batch_id in rates), key=lambda answer: answer.request_id)
    _report_unrated([answer for answer in answers if answer.batch_id not in rates])
    lines = make_lines(cursor, [(event, rates[answer.batch_id]) for answer in priced for event in _events(answer)])
    write_lines(cursor, lines, source="results")
    amounts: dict[int, dict[Meter, Decimal]] = {}
    for line in lines:
        amounts.setdefault(line.event.request_id, {})[line.event.meter] = line.amount
    return [_charge(answer, rates.get(answer.batch_id), amounts) for answer in answers]


def _charge(answer: Answer, rates: Rates | None, amounts: Mapping[int, Mapping[Meter, Decimal]]) -> Charge:
    if rates is None:
        return Charge(answer, None, None, {})
    by_meter = amounts[answer.request_id]
    return Charge(answer, exact_sum(by_meter.values()), rates.currency, by_meter)


def _events(answer: Answer) -> list[Event]:
    return [
        Event(answer.request_id, meter, quantity, answer.tenant_id, answer.model)
        for meter, quantity in answer.usage.quantities()
    ]


def _insert_usage(cursor: Cursor[Any], answers: Sequence[Answer]) -> None:
    rows = [(answer, meter, quantity) for answer in answers for meter, quantity in answer.usage.quantities()]
    cursor.execute(
        _INSERT_USAGE,
        {
            "ids": numbers(answer.request_id for answer, _, _ in rows),
            "slice_ids": numbers(answer.slice_id for answer, _, _ in rows),
            "meters": words(meter.value for _, meter, _ in rows),
            "quantities": numbers(quantity for _, _, quantity in rows),
            # Of the output event alone, so that sums are right.
            "engine_ms": numbers(answer.usage.engine_ms if meter is Meter.OUTPUT else 0 for answer, meter, _ in rows),
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
