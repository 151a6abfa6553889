"""Prices of answers whose tokens always cost the same, which is what nearly all do.

Such a price stands in the row of the answer, as its first revision. The database is told what a token costs, and
multiplies: to make each amount here takes longer than to write it. Products of decimals are exact on both sides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from psycopg import Cursor

from pipeline.billing.charges_by_slice import SliceCharge
from pipeline.billing.ledger import post_receivable
from pipeline.billing.pricing import exact_sum
from pipeline.billing.rated_lines import transaction_key
from pipeline.billing.rating import Rates
from pipeline.tables.billing import Meter


class FlatPrice(NamedTuple):
    """What each token of a slice's answers costs, and where the ledger has their sum."""

    rate_card_id: int
    #: Of the transaction in the ledger.
    idempotency_key: str
    #: Of one token, by meter, after all multipliers.
    uncached: Decimal
    cached: Decimal
    output: Decimal


def is_flat(rates: Rates) -> bool:
    """Whether a token of every meter always costs the same."""
    return not any(rates.needs_quantity_before(meter) for meter in Meter)


def charge_flat(
    cursor: Cursor[Any], charges: Sequence[SliceCharge], rates: Mapping[int, Rates], *, source: str
) -> dict[int, FlatPrice]:
    """Give slices whose rates are flat their amounts, and post one ledger transaction per tenant and currency.

    Returns the prices by slice, for the rows of the answers. Posted twice, they are a UniqueViolation. Waits for no
    answer.
    """
    by_owner: dict[tuple[str, str], list[SliceCharge]] = defaultdict(list)
    for charge in charges:
        of_slice = rates[charge.slice_id]
        charge.amounts = {meter: of_slice.amount(meter, quantity) for meter, quantity in charge.num_tokens.items()}
        by_owner[charge.tenant_id, of_slice.currency].append(charge)
    prices: dict[int, FlatPrice] = {}
    for (tenant_id, currency), owned in sorted(by_owner.items()):
        key = transaction_key(source, ((request_id, 1) for charge in owned for request_id in charge.request_ids))
        amount = exact_sum(charge.amount for charge in owned)
        post_receivable(cursor, tenant_id=tenant_id, currency=currency, amount=amount, idempotency_key=key)
        prices |= {charge.slice_id: _price(rates[charge.slice_id], key) for charge in owned}
    return prices


def _price(rates: Rates, key: str) -> FlatPrice:
    return FlatPrice(
        rates.rate_card_id,
        key,
        uncached=rates.amount(Meter.INPUT_UNCACHED, 1),
        cached=rates.amount(Meter.INPUT_CACHED, 1),
        output=rates.amount(Meter.OUTPUT, 1),
    )
