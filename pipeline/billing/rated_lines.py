"""Rated lines: what usage events cost, written with the transactions of the ledger whose detail they are."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import date
from decimal import Decimal
from typing import Any, Final, NamedTuple

from psycopg import Cursor

from pipeline.billing.counters import Ladder, advance
from pipeline.billing.ledger import Posting, post_receivable
from pipeline.billing.pricing import EXACT, ZERO, exact_sum
from pipeline.billing.rating import Rates
from pipeline.tables.arrays import numbers, words
from pipeline.tables.billing import Meter


# Tuples: a recording makes hundreds of each, and a frozen dataclass takes several times as long.
class Event(NamedTuple):
    """A usage event as rating sees it."""

    request_id: int
    meter: Meter
    quantity: int
    tenant_id: str
    model: str


class Line(NamedTuple):
    """What an event costs by one card."""

    event: Event
    rate_card_id: int
    quantity_before: int
    #: Of 1,000,000 tokens, or of a package; None where it depends on the quantity.
    unit_price: Decimal | None
    amount: Decimal
    currency: str
    revision: int = 1
    #: Of the revision before.
    amount_before: Decimal = ZERO


_INSERT: Final = """
    INSERT INTO rated_lines (request_id, meter, revision, rate_card_id, ledger_transaction_id, quantity,
                             quantity_before, unit_price, amount, currency)
    SELECT o.request_id, o.meter, o.revision, o.rate_card_id, t.id, o.quantity, o.before, o.unit_price, o.amount,
           o.currency
    FROM unnest(%(ids)s::bigint[], %(meters)s::text[], %(revisions)s::smallint[], %(card_ids)s::bigint[],
                %(keys)s::text[], %(quantities)s::bigint[], %(befores)s::bigint[], %(unit_prices)s::numeric[],
                %(amounts)s::numeric[], %(currencies)s::text[])
        AS o (request_id, meter, revision, rate_card_id, key, quantity, before, unit_price, amount, currency)
    JOIN ledger_transactions t ON t.idempotency_key = o.key
"""


def make_lines(cursor: Cursor[Any], events: Sequence[tuple[Event, Rates]], month: date | None = None) -> list[Line]:
    """Rate events in their order, after what the month's counters say; waits for an answer only where a rate needs one.

    `month` is that of the events; None: this one.
    """
    added: dict[Ladder, int] = defaultdict(int)
    for event, rates in events:
        if rates.needs_quantity_before(event.meter):
            added[_ladder(event, rates)] += event.quantity
    before = advance(cursor, added, month)
    lines = []
    for event, rates in events:
        quantity_before = 0
        if rates.needs_quantity_before(event.meter):
            ladder = _ladder(event, rates)
            quantity_before = before[ladder]
            before[ladder] += event.quantity
        lines.append(line_of(event, rates, quantity_before))
    return lines


def line_of(event: Event, rates: Rates, quantity_before: int) -> Line:
    """The line of an event by a card; always the same for the same."""
    return Line(
        event=event,
        rate_card_id=rates.rate_card_id,
        quantity_before=quantity_before,
        unit_price=rates.by_meter[event.meter].unit_price,
        amount=rates.amount(event.meter, event.quantity, quantity_before),
        currency=rates.currency,
    )


def line_text(line: Line) -> str:
    """All that a line says but its revision, in one form: equal texts are equal lines, byte for byte."""
    event = line.event
    price = "" if line.unit_price is None else f"{line.unit_price:.6f}"
    return (
        f"{event.request_id},{event.meter.value},{line.rate_card_id},{event.quantity},{line.quantity_before},{price},"
        f"{line.amount:.15f},{line.currency}\n"
    )


def write_lines(
    cursor: Cursor[Any],
    lines: Sequence[Line],
    *,
    source: str,
    kind: Posting = Posting.USAGE,
    period: date | None = None,
) -> None:
    """Write lines, and one transaction of the ledger per tenant and currency. Waits for no answer.

    The transaction's key is made of `source` and of the lines' requests, meters and revisions: written twice, they
    are a UniqueViolation.
    """
    by_owner: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in lines:
        by_owner[line.event.tenant_id, line.currency].append(line)
    written: list[tuple[Line, str]] = []
    for (tenant_id, currency), owned in sorted(by_owner.items()):
        key = transaction_key(source, owned)
        amount = exact_sum(EXACT.subtract(line.amount, line.amount_before) for line in owned)
        post_receivable(
            cursor,
            tenant_id=tenant_id,
            currency=currency,
            amount=amount,
            idempotency_key=key,
            kind=kind,
            period=period,
        )
        written += [(line, key) for line in owned]
    if written:
        cursor.execute(_INSERT, _columns(written))


def _columns(written: Sequence[tuple[Line, str]]) -> dict[str, str]:
    return {
        "ids": numbers(line.event.request_id for line, _ in written),
        "meters": words(line.event.meter.value for line, _ in written),
        "revisions": numbers(line.revision for line, _ in written),
        "card_ids": numbers(line.rate_card_id for line, _ in written),
        "keys": words(key for _, key in written),
        "quantities": numbers(line.event.quantity for line, _ in written),
        "befores": numbers(line.quantity_before for line, _ in written),
        "unit_prices": numbers(line.unit_price for line, _ in written),
        "amounts": numbers(line.amount for line, _ in written),
        "currencies": words(line.currency for line, _ in written),
    }


def _ladder(event: Event, rates: Rates) -> Ladder:
    return Ladder(event.tenant_id, rates.rate_card_id, event.model, event.meter, rates.service_class)


def transaction_key(source: str, lines: Iterable[Line]) -> str:
    """The same for the same lines; each is written once, so no two transactions share a key."""
    ids = ",".join(sorted(f"{line.event.request_id}/{line.event.meter.value}/{line.revision}" for line in lines))
    return f"{source}:{hashlib.sha256(ids.encode()).hexdigest()}"
