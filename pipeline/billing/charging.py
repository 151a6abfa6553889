"""What an answer costs whom: usage events, their prices, and the ledger, in the transaction of the results."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from psycopg import Cursor

from pipeline.billing.ledger import post_receivable
from pipeline.billing.rating import Rates, TokenUsage, exact_sum
from pipeline.tables.billing import Meter


@dataclass(frozen=True, slots=True)
class Answer:
    """A result that was just written, and what it took."""

    request_id: int
    slice_id: int
    tenant_id: str
    model: str
    usage: TokenUsage


@dataclass(frozen=True, slots=True)
class _Event:
    request_id: int
    slice_id: int
    meter: Meter
    quantity: int
    #: Carried by the output event alone, so that sums are right.
    engine_ms: int


_INSERT_USAGE: Final = """
    INSERT INTO usage_events (request_id, meter, quantity, tenant_id, project_id, api_key_id, batch_id, service_class,
                              model, group_id, engine_ms)
    SELECT o.request_id, o.meter, o.quantity, s.tenant_id, b.project_id, b.api_key_id, s.batch_id, s.service_class,
           s.model, s.group_id, o.engine_ms
    FROM unnest(%(ids)b::bigint[], %(slice_ids)b::bigint[], %(meters)b::text[],
                %(quantities)b::bigint[], %(engine_ms)b::bigint[])
        AS o (request_id, slice_id, meter, quantity, engine_ms)
    JOIN slices s ON s.id = o.slice_id JOIN batches b ON b.id = s.batch_id
"""

_INSERT_RATED: Final = """
    INSERT INTO rated_lines (request_id, meter, rate_card_id, ledger_transaction_id, quantity, unit_price, amount,
                             currency)
    SELECT o.request_id, o.meter, %(rate_card_id)s, t.id, o.quantity, o.unit_price, o.amount, %(currency)s
    FROM unnest(%(ids)b::bigint[], %(meters)b::text[], %(quantities)b::bigint[],
                %(unit_prices)b::numeric[], %(amounts)b::numeric[])
        AS o (request_id, meter, quantity, unit_price, amount)
    JOIN ledger_transactions t ON t.idempotency_key = %(key)s
"""


def charge(cursor: Cursor[Any], answers: Sequence[Answer], rates: Mapping[str, Rates]) -> None:
    """Meter and rate `answers`, and post one ledger transaction per tenant and model, in the transaction of `cursor`.

    `rates` by model. Waits for no answer of the database, so that it can be part of a pipeline. Events are keyed by
    request and meter, so a second call for the same answers is a UniqueViolation; the caller passes new ones alone.
    """
    by_owner: dict[tuple[str, str], list[Answer]] = defaultdict(list)
    for answer in answers:
        by_owner[answer.tenant_id, answer.model].append(answer)
    for (tenant_id, model), owned in sorted(by_owner.items()):
        events = [event for answer in owned for event in _events(answer)]
        _insert_usage(cursor, events)
        _insert_rated(cursor, events, tenant_id, rates[model])


def _events(answer: Answer) -> list[_Event]:
    engine_ms = answer.usage.engine_ms
    return [
        _Event(answer.request_id, answer.slice_id, meter, quantity, engine_ms if meter is Meter.OUTPUT else 0)
        for meter, quantity in answer.usage.quantities()
    ]


def _insert_usage(cursor: Cursor[Any], events: Sequence[_Event]) -> None:
    cursor.execute(
        _INSERT_USAGE,
        {
            "ids": [event.request_id for event in events],
            "slice_ids": [event.slice_id for event in events],
            "meters": [event.meter.value for event in events],
            "quantities": [event.quantity for event in events],
            "engine_ms": [event.engine_ms for event in events],
        },
    )


def _insert_rated(cursor: Cursor[Any], events: Sequence[_Event], tenant_id: str, rates: Rates) -> None:
    key = _idempotency_key(event.request_id for event in events)
    amounts = [rates.amount(event.meter, event.quantity) for event in events]
    post_receivable(
        cursor, tenant_id=tenant_id, currency=rates.currency, amount=exact_sum(amounts), idempotency_key=key
    )
    cursor.execute(
        _INSERT_RATED,
        {
            "rate_card_id": rates.rate_card_id,
            "currency": rates.currency,
            "key": key,
            "ids": [event.request_id for event in events],
            "meters": [event.meter.value for event in events],
            "quantities": [event.quantity for event in events],
            "unit_prices": [rates.unit_prices[event.meter] for event in events],
            "amounts": amounts,
        },
    )


def _idempotency_key(request_ids: Iterable[int]) -> str:
    """The same for the same results; a request has one result, so no two transactions share a key."""
    ids = ",".join(map(str, sorted(set(request_ids))))
    return f"results:{hashlib.sha256(ids.encode()).hexdigest()}"
