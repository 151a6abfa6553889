"""Prices of answers whose tokens always cost the same, which is what nearly all do.

Such a price stands in the row of the answer, as its first revision. The database is told what a token costs, and
multiplies: to make each amount here takes longer than to write it. Products of decimals are exact on both sides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

from pipeline.billing.charges_by_slice import SliceCharge
from pipeline.billing.ledger import Accounts, UsageSum
from pipeline.billing.pricing import exact_sum
from pipeline.billing.rating import Rates
from pipeline.tables.billing import Meter


class FlatPrice(NamedTuple):
    """What each token of a slice's answers costs, and where the ledger has their sum."""

    rate_card_id: int
    #: Of the ledger's transaction that has the sum.
    idempotency_key: str
    #: Of one token, by meter, after all multipliers.
    uncached: Decimal
    cached: Decimal
    output: Decimal


def is_flat(rates: Rates) -> bool:
    """Whether a token of every meter always costs the same."""
    return not any(rates.needs_quantity_before(meter) for meter in Meter)


def charge_flat(
    charges: Sequence[SliceCharge], rates: Mapping[int, Rates], accounts_of: Callable[[str, str], Accounts]
) -> tuple[dict[int, FlatPrice], list[UsageSum]]:
    """Give slices whose rates are flat their amounts.

    Returns their prices, by slice, and what is to be posted with their answers: one sum per tenant and currency, whose
    accounts `accounts_of` finds.
    """
    by_owner: dict[tuple[str, str], list[SliceCharge]] = defaultdict(list)
    for charge in charges:
        of_slice = rates[charge.slice_id]
        charge.amounts = {meter: of_slice.amount(meter, quantity) for meter, quantity in charge.num_tokens.items()}
        by_owner[charge.answers.tenant_id, of_slice.currency].append(charge)
    prices: dict[int, FlatPrice] = {}
    sums: list[UsageSum] = []
    for (tenant_id, currency), owned in sorted(by_owner.items()):
        # An answer is written once, and its cost is in one sum alone: so no two have the same first answer.
        key = f"results:{min(min(charge.answers.request_ids) for charge in owned)}"
        amount = exact_sum(charge.amount for charge in owned)
        sums.append(UsageSum(key, tenant_id, accounts_of(tenant_id, currency), amount))
        prices |= {charge.slice_id: _price(rates[charge.slice_id], key) for charge in owned}
    return prices, sums


def _price(rates: Rates, key: str) -> FlatPrice:
    return FlatPrice(
        rates.rate_card_id,
        key,
        uncached=rates.amount(Meter.INPUT_UNCACHED, 1),
        cached=rates.amount(Meter.INPUT_CACHED, 1),
        output=rates.amount(Meter.OUTPUT, 1),
    )
