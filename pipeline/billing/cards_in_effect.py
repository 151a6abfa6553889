"""Which card holds for whom: the batch's own if its price is agreed, else the contract's, else the default plan's.

Of a slice that budgets hold room for, it is the card that this room was counted by. Claimed slices get the accounts of
the ledger with it that its prices are posted to: both are asked for in one statement, before every recording.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from psycopg import Cursor
from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from pipeline.billing.ledger import Accounts
from pipeline.billing.pricing import Rate, Tier
from pipeline.billing.rating import Rates
from pipeline.tables.batches import ServiceClass
from pipeline.tables.billing import Meter
from pipeline.tables.rates import Pricing

# Of rows `wanted (tenant_id, model, rate_card_id, service_class, at)`. A plan need not price every model: what the
# contract's own rates and its plan leave out has the default plan's price.
_JOIN_CARD: Final = """
    LEFT JOIN LATERAL (
        SELECT c.plan, c.overrides FROM contracts c
        WHERE c.tenant_id = wanted.tenant_id AND c.effective_from <= wanted.at
        ORDER BY c.effective_from DESC, c.created_at DESC, c.id DESC LIMIT 1
    ) contract ON wanted.rate_card_id IS NULL
    LEFT JOIN LATERAL (
        SELECT k.id FROM rates r JOIN rate_cards k ON k.id = r.rate_card_id
        WHERE r.model = wanted.model AND r.meter = 'output'
          AND k.plan IN ('default', contract.plan, contract.overrides)
          AND k.published_at IS NOT NULL AND k.effective_from <= wanted.at
        ORDER BY k.plan IS NOT DISTINCT FROM contract.overrides DESC, k.plan IS NOT DISTINCT FROM contract.plan DESC,
                 k.effective_from DESC, k.id DESC
        LIMIT 1
    ) in_effect ON wanted.rate_card_id IS NULL
    JOIN rate_cards k ON k.id = coalesce(wanted.rate_card_id, in_effect.id)
"""

_COLUMNS: Final = """
    k.id, k.plan, k.version, k.currency, wanted.service_class, k.batch_discount,
    CASE wanted.service_class WHEN 'priority' THEN k.priority_multiplier WHEN 'flex' THEN k.flex_multiplier ELSE 1 END,
    (
        SELECT json_agg(json_build_array(
            r.meter, r.pricing, r.unit_price::text, r.package_size, r.tiers, r.minimum::text
        ) ORDER BY r.meter)::text
        FROM rates r WHERE r.rate_card_id = k.id AND r.model = wanted.model
    )
"""

_RATES_OF_BATCHES: Final = text(f"""
    SELECT wanted.batch_id, {_COLUMNS}
    FROM (
        SELECT b.id AS batch_id, b.tenant_id, b.model, b.rate_card_id, b.service_class, now() AS at
        FROM batches b WHERE b.id = ANY(CAST(:batch_ids AS text[]))
    ) wanted {_JOIN_CARD}
""")  # noqa: S608 — all of it is ours

# Of claimed slices, for psycopg, with the accounts of the ledger that their prices are posted to.
_RATES_OF_SLICES: Final = f"""
    SELECT wanted.slice_ids, wanted.tenant_id,
           (SELECT id FROM ledger_accounts a
            WHERE a.kind = 'receivable' AND a.tenant_id = wanted.tenant_id AND a.currency = k.currency
              AND a.grant_id IS NULL),
           (SELECT id FROM ledger_accounts a
            WHERE a.kind = 'revenue' AND a.tenant_id IS NULL AND a.currency = k.currency AND a.grant_id IS NULL),
           {_COLUMNS}
    FROM (
        SELECT array_agg(s.id) AS slice_ids, b.tenant_id, b.model, b.service_class, now() AS at,
               coalesce(b.rate_card_id, held.rate_card_id) AS rate_card_id
        FROM slices s JOIN batches b ON b.id = s.batch_id
        LEFT JOIN LATERAL (SELECT h.rate_card_id FROM holds h WHERE h.slice_id = s.id LIMIT 1) held ON true
        WHERE s.id = ANY(%(slice_ids)b::bigint[]) GROUP BY b.id, held.rate_card_id
    ) wanted {_JOIN_CARD}
"""  # noqa: S608 — all of it is ours

_FIND: Final = text(f"""
    SELECT {_COLUMNS}
    FROM (
        SELECT CAST(:tenant_id AS text) AS tenant_id, CAST(:model AS text) AS model,
               CAST(:rate_card_id AS bigint) AS rate_card_id, CAST(:service_class AS text) AS service_class,
               coalesce(CAST(:at AS timestamptz), clock_timestamp()) AS at
    ) wanted {_JOIN_CARD}
""")  # noqa: S608 — all of it is ours


_PRICED: Final = text(f"""
    SELECT DISTINCT wanted.model
    FROM (
        SELECT CAST(:tenant_id AS text) AS tenant_id, name AS model, CAST(:rate_card_id AS bigint) AS rate_card_id,
               clock_timestamp() AS at
        FROM served_models
    ) wanted {_JOIN_CARD}
    JOIN rates priced ON priced.rate_card_id = k.id AND priced.model = wanted.model
""")  # noqa: S608 — all of it is ours


def find_rates(
    session: Session | Connection,
    *,
    tenant_id: str,
    model: str,
    service_class: ServiceClass = ServiceClass.STANDARD,
    rate_card_id: int | None = None,
    at: datetime | None = None,
) -> Rates | None:
    """What `model` costs this tenant, now or at a moment; by the card with this id where its price was agreed.

    None where nothing prices the model: such a request is refused, and such usage is unrated.
    """
    row = session.execute(
        _FIND,
        {
            "tenant_id": tenant_id,
            "model": model,
            "rate_card_id": rate_card_id,
            "service_class": service_class.value,
            "at": at,
        },
    ).one_or_none()
    return None if row is None else rates_of(tuple(row))


def priced_models(session: Session | Connection, tenant_id: str, rate_card_id: int | None = None) -> frozenset[str]:
    """The served models that have a price for this tenant, or on the card that was agreed with it."""
    return frozenset(session.scalars(_PRICED, {"tenant_id": tenant_id, "rate_card_id": rate_card_id}))


def find_rates_of_batches(session: Session | Connection, batch_ids: Sequence[str]) -> dict[str, Rates]:
    """By batch, what its model costs its tenant now; without those that nothing prices."""
    rows = session.execute(_RATES_OF_BATCHES, {"batch_ids": list(batch_ids)})
    found = ((batch_id, rates_of(tuple(row))) for batch_id, *row in rows)
    return {batch_id: rates for batch_id, rates in found if rates is not None}


def ask_rates(cursor: Cursor[Any], slice_ids: Iterable[int]) -> None:
    """What claimed slices cost now; waits for no answer, which `found_rates` reads."""
    cursor.execute(_RATES_OF_SLICES, {"slice_ids": list(slice_ids)})


def found_rates(cursor: Cursor[Any]) -> tuple[dict[int, Rates], dict[tuple[str, str], Accounts]]:
    """Rates by slice, and the accounts that they are posted to by tenant and currency.

    Without slices that nothing prices, and without accounts that nobody has opened yet.
    """
    rates: dict[int, Rates] = {}
    accounts: dict[tuple[str, str], Accounts] = {}
    for slice_ids, tenant_id, receivable, revenue, *card in cursor.fetchall():
        of_card = rates_of(tuple(card))
        if of_card is None:
            continue
        rates |= dict.fromkeys(slice_ids, of_card)
        if receivable is not None and revenue is not None:
            accounts[tenant_id, of_card.currency] = Accounts(receivable, revenue)
    return rates, accounts


@lru_cache(maxsize=256)  # published cards never change, and the key is all of their content
def rates_of(row: tuple[Any, ...]) -> Rates | None:
    """From a row of a card; None where it does not price every meter of the model."""
    card_id, plan, version, currency, service_class, batch_discount, class_multiplier, rates = row
    by_meter = {Meter(meter): _rate(*rest) for meter, *rest in json.loads(rates or "[]")}
    if by_meter.keys() != set(Meter):
        return None
    multiplier = Decimal(class_multiplier)
    return Rates(card_id, plan, version, currency, ServiceClass(service_class), by_meter, batch_discount, multiplier)


def _rate(
    pricing: str,
    unit_price: str | None,
    package_size: int | None,
    tiers: Sequence[Mapping[str, Any]] | None,
    minimum: str,
) -> Rate:
    if unit_price is not None:
        steps: tuple[Tier, ...] = (Tier(None, Decimal(unit_price)),)
    else:
        steps = tuple(Tier(tier["up_to"], Decimal(tier["price"])) for tier in tiers or ())
    return Rate(Pricing(pricing), steps, package_size or 0, Decimal(minimum))
