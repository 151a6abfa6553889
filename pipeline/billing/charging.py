"""What answers cost whom, and the ledger, in the transaction that writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from psycopg import Cursor

from pipeline.billing.charges_by_slice import Answer, SliceCharge, add_up
from pipeline.billing.flat_prices import FlatPrice, charge_flat, is_flat
from pipeline.billing.pricing import EXACT, ZERO
from pipeline.billing.rated_lines import Event, make_lines, write_lines
from pipeline.billing.rating import Rates

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Charged:
    """What answers cost."""

    slices: Sequence[SliceCharge] = ()
    #: By slice, what is to be written with its answers; none of slices whose prices are rated lines, or missing.
    prices: Mapping[int, FlatPrice] = field(default_factory=dict)


def charge(cursor: Cursor[Any], answers: Sequence[Answer], rates: Mapping[int, Rates]) -> Charged:
    """Rate `answers`, and post one ledger transaction per tenant, in the transaction of `cursor`.

    The caller writes their usage and flat prices with them; `rates` by slice. Answers of a slice without rates are
    unrated until somebody prices them. Waits for no answer of the database, so that it can be part of a pipeline, but
    for rates that depend on what was used before. What is posted is keyed by requests, so a second call for the same
    answers is a UniqueViolation; the caller passes new ones alone.
    """
    charges = add_up(answers, rates)
    _report_unrated([charge for charge in charges if charge.currency is None])
    priced = [charge for charge in charges if charge.currency is not None]
    flat = [charge for charge in priced if is_flat(rates[charge.slice_id])]
    prices = charge_flat(cursor, flat, rates, source="results") if flat else {}
    stepped = {charge.slice_id: charge for charge in priced if charge.slice_id not in prices}
    if stepped:
        _charge_stepped(cursor, [answer for answer in answers if answer.slice_id in stepped], stepped, rates)
    return Charged(charges, prices)


def _charge_stepped(
    cursor: Cursor[Any], answers: Sequence[Answer], charges: Mapping[int, SliceCharge], rates: Mapping[int, Rates]
) -> None:
    """Write rated lines of answers whose prices depend on what was used before."""
    ordered = sorted(answers, key=lambda answer: answer.request_id)
    lines = make_lines(cursor, [(event, rates[answer.slice_id]) for answer in ordered for event in _events(answer)])
    write_lines(cursor, lines, source="results")
    slice_of = {answer.request_id: answer.slice_id for answer in ordered}
    for line in lines:
        amounts = charges[slice_of[line.event.request_id]].amounts
        amounts[line.event.meter] = EXACT.add(amounts.get(line.event.meter, ZERO), line.amount)


def _events(answer: Answer) -> list[Event]:
    return [
        Event(answer.request_id, meter, quantity, answer.tenant_id, answer.model)
        for meter, quantity in answer.usage.quantities()
    ]


def _report_unrated(charges: Sequence[SliceCharge]) -> None:
    for model in sorted({charge.model for charge in charges}):
        requests = sorted(
            request_id for charge in charges if charge.model == model for request_id in charge.request_ids
        )
        log.error(
            "usage is unrated: no rate card prices this model; publish one, then run `ryzanstein bill rate`",
            model=model,
            requests=requests,
        )
