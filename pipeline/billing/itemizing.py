"""What is to be billed: usage events at the latest revision of their prices, less what was billed of them before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Date, Row, and_, case, cast, func, select
from sqlalchemy.orm import Session

from pipeline.billing.documents import Item
from pipeline.billing.rating import exact_sum
from pipeline.billing.reports import Month
from pipeline.tables import ApiKey, Invoice, InvoiceItem, InvoiceStatus, Meter, Project, RatedUsage
from pipeline.tables.rates import Pricing, Rate

#: Of an item, all but what is counted.
_KEY: Final = (
    "day",
    "project_id",
    "api_key_id",
    "model",
    "meter",
    "service_class",
    "rate_card_id",
    "unit_price",
)


def currencies_used(session: Session, tenant_id: str, month: Month) -> list[str]:
    """Currencies in which the usage of a month is rated."""
    query = (
        select(RatedUsage.currency)
        .select_from(RatedUsage)
        .where(RatedUsage.tenant_id == tenant_id, RatedUsage.revision.is_not(None), *_within(month))
        .distinct()
        .order_by(RatedUsage.currency)
    )
    return list(session.scalars(query))


def usage_items(session: Session, tenant_id: str, month: Month, currency: str) -> list[Item]:
    """All usage of a month, rated as it is now."""
    # A price that one number tells; of tiers and packages it does not.
    price = case((and_(Rate.pricing == Pricing.FLAT, Rate.minimum == 0), RatedUsage.unit_price)).label("unit_price")
    day = cast(func.timezone("UTC", RatedUsage.occurred_at), Date).label("day")
    keys = (
        day,
        RatedUsage.project_id,
        RatedUsage.api_key_id,
        RatedUsage.model,
        RatedUsage.meter,
        RatedUsage.service_class,
        RatedUsage.rate_card_id,
        price,
    )
    query = (
        select(
            *keys,
            func.count().label("num_events"),
            func.sum(RatedUsage.rated_quantity).label("quantity"),
            func.sum(RatedUsage.amount).label("exact"),
        )
        .select_from(RatedUsage)
        .outerjoin(
            Rate,
            and_(
                Rate.rate_card_id == RatedUsage.rate_card_id,
                Rate.model == RatedUsage.model,
                Rate.meter == RatedUsage.meter,
            ),
        )
        .where(RatedUsage.tenant_id == tenant_id, RatedUsage.currency == currency, *_within(month))
        .group_by(*keys)
    )
    return [_item(row) for row in session.execute(query)]


def invoiced_items(session: Session, tenant_id: str, month: Month, currency: str) -> list[Item]:
    """What the invoices that are issued have billed of the usage of a month, corrections among it."""
    keys = [getattr(InvoiceItem, name) for name in _KEY]
    query = (
        select(
            *keys,
            func.sum(InvoiceItem.num_events).label("num_events"),
            func.sum(InvoiceItem.quantity).label("quantity"),
            func.sum(InvoiceItem.exact).label("exact"),
        )
        .join(Invoice, Invoice.id == InvoiceItem.invoice_id)
        .where(
            Invoice.tenant_id == tenant_id,
            Invoice.currency == currency,
            Invoice.status == InvoiceStatus.FINAL,
            InvoiceItem.day >= month.start.date(),
            InvoiceItem.day < month.end.date(),
        )
        .group_by(*keys)
    )
    return [_item(row) for row in session.execute(query)]


def items_to_bill(session: Session, tenant_id: str, month: Month, currency: str) -> list[Item]:
    """Usage of the month that no issued invoice has, and what has changed of earlier months that were billed."""
    items = difference(
        usage_items(session, tenant_id, month, currency), invoiced_items(session, tenant_id, month, currency)
    )
    for earlier in billed_months(session, tenant_id, currency, before=month):
        billed = invoiced_items(session, tenant_id, earlier, currency)
        now = usage_items(session, tenant_id, earlier, currency)
        if _is_whole(now, billed):
            items += difference(now, billed)
    return items


def is_still_whole(session: Session, tenant_id: str, month: Month, currency: str) -> bool:
    """Whether all usage of a month that issued invoices have billed is still there, and could be billed again."""
    return _is_whole(
        usage_items(session, tenant_id, month, currency), invoiced_items(session, tenant_id, month, currency)
    )


def _is_whole(now: Iterable[Item], billed: Iterable[Item]) -> bool:
    """Events are never taken away, so where some are missing their partitions were dropped: nothing can be compared."""
    return sum(item.num_events for item in now) >= sum(item.num_events for item in billed)


def billed_months(session: Session, tenant_id: str, currency: str, *, before: Month) -> list[Month]:
    """Earlier months whose invoice is issued."""
    query = (
        select(Invoice.month_start)
        .where(
            Invoice.tenant_id == tenant_id,
            Invoice.currency == currency,
            Invoice.status == InvoiceStatus.FINAL,
            Invoice.month_start < before.start.date(),
        )
        .distinct()
        .order_by(Invoice.month_start)
    )
    return [Month.of_day(day) for day in session.scalars(query)]


def difference(now: Iterable[Item], billed: Iterable[Item]) -> list[Item]:
    """What `now` has more (positive) or less (negative) than `billed`, by day, key and price."""
    quantities: Counter[tuple[Any, ...]] = Counter()
    events: Counter[tuple[Any, ...]] = Counter()
    amounts: dict[tuple[Any, ...], list[Decimal]] = {}
    samples: dict[tuple[Any, ...], Item] = {}
    for item, sign in [*((item, 1) for item in now), *((item, -1) for item in billed)]:
        key = tuple(getattr(item, name) for name in _KEY)
        samples.setdefault(key, item)
        quantities[key] += sign * item.quantity
        events[key] += sign * item.num_events
        amounts.setdefault(key, []).append(item.exact if sign > 0 else item.exact.copy_negate())
    differing = [
        replace(sample, quantity=quantities[key], num_events=events[key], exact=exact_sum(amounts[key]))
        for key, sample in samples.items()
    ]
    return [item for item in differing if item.quantity or item.num_events or item.exact]


def item_names(session: Session, items: Sequence[Item]) -> dict[str, str]:
    """What the keys and projects of items are called, by their ids."""
    names: dict[str, str] = {}
    for table, ids in (
        (ApiKey, {item.api_key_id for item in items}),
        (Project, {item.project_id for item in items if item.project_id is not None}),
    ):
        query = select(table.id, table.name).where(table.id.in_(sorted(ids)))
        names |= {row.id: row.name for row in session.execute(query)}
    return names


def _within(month: Month) -> tuple[Any, Any]:
    return RatedUsage.occurred_at >= month.start, RatedUsage.occurred_at < month.end


def _item(row: Row[*tuple[Any, ...]]) -> Item:
    day: date = row.day
    return Item(
        day=day,
        project_id=row.project_id,
        api_key_id=row.api_key_id,
        model=row.model,
        meter=Meter(row.meter),
        service_class=row.service_class,
        rate_card_id=row.rate_card_id,
        unit_price=row.unit_price,
        num_events=int(row.num_events),
        quantity=int(row.quantity),
        exact=row.exact,
    )
