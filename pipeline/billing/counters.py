"""What a tenant has used in a month by rates that depend on it: each event pays for what it adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

from psycopg import Cursor

from pipeline.tables.batches import ServiceClass
from pipeline.tables.billing import Meter


@dataclass(frozen=True, slots=True, order=True)
class Ladder:
    """Whose quantities are counted together: those that climb the same tiers."""

    tenant_id: str
    rate_card_id: int
    model: str
    meter: Meter
    service_class: ServiceClass


# In one order, so that two recordings never wait for each other.
_ADVANCE: Final = """
    INSERT INTO rating_counters (tenant_id, month, rate_card_id, model, meter, service_class, quantity)
    SELECT o.tenant_id, coalesce(%(month)s::date, date_trunc('month', now() AT TIME ZONE 'UTC')::date), o.rate_card_id,
           o.model, o.meter, o.service_class, o.quantity
    FROM unnest(%(tenant_ids)b::text[], %(card_ids)b::bigint[], %(models)b::text[], %(meters)b::text[],
                %(classes)b::text[], %(quantities)b::bigint[])
        WITH ORDINALITY AS o (tenant_id, rate_card_id, model, meter, service_class, quantity, position)
    ORDER BY o.position
    ON CONFLICT (tenant_id, month, rate_card_id, model, meter, service_class)
        DO UPDATE SET quantity = rating_counters.quantity + EXCLUDED.quantity
    RETURNING tenant_id, rate_card_id, model, meter, service_class, quantity
"""


def advance(cursor: Cursor[Any], added: Mapping[Ladder, int], month: date | None = None) -> dict[Ladder, int]:
    """Add to the counters of a month, of this one if none is given; returns what each was before.

    Keeps their rows locked until the transaction ends, and waits for the answer.
    """
    if not added:
        return {}
    ladders = sorted(added)
    cursor.execute(
        _ADVANCE,
        {
            "month": month,
            "tenant_ids": [ladder.tenant_id for ladder in ladders],
            "card_ids": [ladder.rate_card_id for ladder in ladders],
            "models": [ladder.model for ladder in ladders],
            "meters": [ladder.meter.value for ladder in ladders],
            "classes": [ladder.service_class.value for ladder in ladders],
            "quantities": [added[ladder] for ladder in ladders],
        },
    )
    after = {
        Ladder(tenant_id, card_id, model, Meter(meter), ServiceClass(service_class)): quantity
        for tenant_id, card_id, model, meter, service_class, quantity in cursor.fetchall()
    }
    return {ladder: after[ladder] - added[ladder] for ladder in ladders}
