"""What answers cost whom, and the ledger, in the transaction that writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from psycopg import Cursor

from pipeline.billing.charges_by_slice import SliceAnswers, SliceCharge, add_up
from pipeline.billing.flat_prices import FlatPrice, charge_flat, is_flat
from pipeline.billing.ledger import Accounts, UsageSum, open_accounts
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
    #: What is to be posted with them.
    sums: Sequence[UsageSum] = ()


def charge(
    cursor: Cursor[Any],
    answers: Sequence[SliceAnswers],
    rates: Mapping[int, Rates],
    accounts: Mapping[tuple[str, str], Accounts],
) -> Charged:
    """Rate `answers`, in the transaction of `cursor`: one transaction of the ledger per tenant and currency.

    The caller writes their usage and flat prices with them, and posts the sums of these. `rates` by slice, `accounts`
    by tenant and currency. Answers of a slice without rates are unrated until somebody prices them. Waits for no answer
    of the database, so that it can be part of a pipeline, but for rates that depend on what was used before, and for
    accounts that are yet to be opened. What is posted is keyed by requests, so a second call for the same answers is a
    UniqueViolation; the caller passes new ones alone.
    """
    charges = [add_up(of_slice, rates.get(of_slice.slice_id)) for of_slice in answers]
    _report_unrated([charge.answers for charge in charges if charge.currency is None])
    priced = [charge for charge in charges if charge.currency is not None]
    flat = [charge for charge in priced if is_flat(rates[charge.slice_id])]
    prices, sums = charge_flat(flat, rates, lambda *owner: accounts.get(owner) or open_accounts(cursor, *owner))
    stepped = {charge.slice_id: charge for charge in priced if charge.slice_id not in prices}
    if stepped:
        _charge_stepped(cursor, stepped, rates)
    return Charged(charges, prices, sums)


def _charge_stepped(cursor: Cursor[Any], charges: Mapping[int, SliceCharge], rates: Mapping[int, Rates]) -> None:
    """Write rated lines of answers whose prices depend on what was used before, in the order of their requests."""
    events = [(event, slice_id) for slice_id, charge in charges.items() for event in _events(charge.answers)]
    events.sort(key=lambda one: one[0].request_id)
    lines = make_lines(cursor, [(event, rates[slice_id]) for event, slice_id in events])
    write_lines(cursor, lines, source="results")
    for line, (event, slice_id) in zip(lines, events, strict=True):
        amounts = charges[slice_id].amounts
        amounts[event.meter] = EXACT.add(amounts.get(event.meter, ZERO), line.amount)


def _events(answers: SliceAnswers) -> list[Event]:
    return [
        Event(request_id, meter, quantity, answers.tenant_id, answers.model)
        for request_id, usage in zip(answers.request_ids, answers.usages, strict=True)
        for meter, quantity in usage.quantities()
    ]


def _report_unrated(answers: Sequence[SliceAnswers]) -> None:
    for model in sorted({of_slice.model for of_slice in answers}):
        requests = sorted(
            request_id for of_slice in answers if of_slice.model == model for request_id in of_slice.request_ids
        )
        log.error(
            "usage is unrated: no rate card prices this model; publish one, then run `ryzanstein bill rate`",
            model=model,
            requests=requests,
        )
