"""Usage and bills of a month, read from what answers used and the latest revision of its prices.

Usage belongs to the month, in UTC, in which its result was recorded. No amount is rounded but the total of a bill.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import MAXYEAR, UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Numeric, Row, Select, cast, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from pipeline.billing.currencies import round_to_minor, rounding_of
from pipeline.billing.rating import exact_sum
from pipeline.errors import UserError
from pipeline.tables import ApiKey, ArchivedUsage, Meter, MeteredUsage, Pricing, Rate, RateCard, RatedUsage, Tenant


class DroppedUsageError(UserError):
    """Some of the usage is no longer kept, so that a report would be too low."""


class UnratedUsageError(UserError):
    """Some usage has no price, so that a bill would be too low."""


@dataclass(frozen=True)
class Month:
    """A calendar month in UTC."""

    year: int
    number: int

    @classmethod
    def parse(cls, text: str) -> Month:
        """`2026-11`. Raises UserError."""
        matched = re.fullmatch(r"([0-9]{4})-(0[1-9]|1[0-2])", text)
        if matched is None or not 1 <= int(matched[1]) < MAXYEAR:  # the last month of MAXYEAR has no end
            raise UserError(f"{text!r} is no month: give a year and a month, such as 2026-11.")
        return cls(int(matched[1]), int(matched[2]))

    @classmethod
    def of(cls, moment: datetime) -> Month:
        in_utc = moment.astimezone(UTC)
        return cls(in_utc.year, in_utc.month)

    @classmethod
    def of_day(cls, day: date) -> Month:
        return cls(day.year, day.month)

    @property
    def start(self) -> datetime:
        return datetime(self.year, self.number, 1, tzinfo=UTC)

    @property
    def end(self) -> datetime:
        """The first moment after it."""
        return datetime(self.year + self.number // 12, self.number % 12 + 1, 1, tzinfo=UTC)

    def __str__(self) -> str:
        return f"{self.year:04}-{self.number:02}"


class By(StrEnum):
    """What lines can be split by, besides tenant and model."""

    BATCH = "batch"
    KEY = "key"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Whose requests a line counts; batch and key only where it is split by them."""

    tenant_id: str
    tenant: str
    model: str
    batch_id: str | None = None
    api_key_id: str | None = None
    api_key: str | None = None


@dataclass(frozen=True, kw_only=True)
class UsageLine:
    group: Group
    num_requests: int
    num_input_uncached_tokens: int
    num_input_cached_tokens: int
    num_output_tokens: int
    #: Time of engines, shared out over the requests that ran together.
    engine_ms: int


@dataclass(frozen=True, kw_only=True)
class BillLine:
    """What the requests of a group cost by one rate card. Prices are of 1,000,000 tokens; amounts are exact.

    A price is None where it depends on what was used.
    """

    group: Group
    num_requests: int
    input_price: Decimal | None
    cached_input_price: Decimal | None
    output_price: Decimal | None
    batch_discount: Decimal
    num_input_uncached_tokens: int
    num_input_cached_tokens: int
    num_output_tokens: int
    input_uncached_amount: Decimal
    input_cached_amount: Decimal
    output_amount: Decimal

    @property
    def amount(self) -> Decimal:
        return exact_sum([self.input_uncached_amount, self.input_cached_amount, self.output_amount])


@dataclass(frozen=True, kw_only=True)
class Bill:
    """What a tenant owes for a month, in one currency."""

    month: Month
    tenant_id: str
    tenant: str
    currency: str
    lines: Sequence[BillLine]

    @property
    def exact(self) -> Decimal:
        return exact_sum(line.amount for line in self.lines)

    @property
    def rounding(self) -> Decimal:
        """Line of its own, so that exact + rounding = total."""
        return rounding_of(self.exact, self.currency)

    @property
    def total(self) -> Decimal:
        """Rounded once, half away from zero, to the currency's minor unit."""
        return round_to_minor(self.exact, self.currency)


def usage_report(
    session: Session, month: Month, *, tenant_id: str | None = None, by: Sequence[By] = ()
) -> list[UsageLine]:
    """Tokens of a month by tenant and model, and by what `by` names.

    Raises DroppedUsageError where retention has dropped events of the month.
    """
    check_all_kept(session, month, tenant_id)
    keys = _keys(MeteredUsage, by)
    query = (
        select(
            *keys.values(),
            _count_requests(MeteredUsage.meter),
            *(_tokens(MeteredUsage.meter, MeteredUsage.quantity, meter) for meter in Meter),
            func.sum(MeteredUsage.engine_ms).label("engine_ms"),
        )
        .select_from(MeteredUsage)
        .group_by(*keys.values())
        .order_by(*keys.values())
    )
    return [
        UsageLine(
            group=_group(row, by),
            num_requests=row.num_requests,
            num_input_uncached_tokens=int(row.input_uncached_tokens),
            num_input_cached_tokens=int(row.input_cached_tokens),
            num_output_tokens=int(row.output_tokens),
            engine_ms=int(row.engine_ms),
        )
        for row in session.execute(_of_month(query, MeteredUsage, month, tenant_id))
    ]


def bills(session: Session, month: Month, *, tenant_id: str | None = None, by: Sequence[By] = ()) -> list[Bill]:
    """One bill per tenant and currency, by tenant; none for a tenant that used nothing.

    Raises UnratedUsageError where a usage event has no price: it is never taken for free; and DroppedUsageError.
    """
    check_all_kept(session, month, tenant_id)
    check_all_rated(session, month, tenant_id)
    keys = _keys(RatedUsage, by)
    query = (
        select(
            *keys.values(),
            RatedUsage.currency,
            _price(Meter.INPUT_UNCACHED, "input_price"),
            _price(Meter.INPUT_CACHED, "cached_input_price"),
            _price(Meter.OUTPUT, "output_price"),
            RateCard.batch_discount,
            _count_requests(RatedUsage.meter),
            *(_tokens(RatedUsage.meter, RatedUsage.rated_quantity, meter) for meter in Meter),
            *(_amount(meter) for meter in Meter),
        )
        .select_from(RatedUsage)
        .join(RateCard, RateCard.id == RatedUsage.rate_card_id)
        .group_by(*keys.values(), RatedUsage.currency, RateCard.id)
        .order_by(*keys.values(), RateCard.id)
    )
    lines: dict[tuple[str, str, str], list[BillLine]] = defaultdict(list)
    for row in session.execute(_of_month(query, RatedUsage, month, tenant_id)):
        line = BillLine(
            group=_group(row, by),
            num_requests=row.num_requests,
            input_price=row.input_price,
            cached_input_price=row.cached_input_price,
            output_price=row.output_price,
            batch_discount=row.batch_discount,
            num_input_uncached_tokens=int(row.input_uncached_tokens),
            num_input_cached_tokens=int(row.input_cached_tokens),
            num_output_tokens=int(row.output_tokens),
            input_uncached_amount=row.input_uncached_amount,
            input_cached_amount=row.input_cached_amount,
            output_amount=row.output_amount,
        )
        lines[row.tenant_id, row.tenant, row.currency].append(line)
    return [
        Bill(month=month, tenant_id=tenant_id, tenant=tenant, currency=currency, lines=of_bill)
        for (tenant_id, tenant, currency), of_bill in lines.items()
    ]


_KeyColumns = dict[str, ColumnElement[str] | InstrumentedAttribute[str]]


_Usage = type[MeteredUsage | RatedUsage]


def _keys(usage: _Usage, by: Sequence[By]) -> _KeyColumns:
    keys: _KeyColumns = {"tenant": Tenant.name.label("tenant"), "tenant_id": usage.tenant_id}
    keys["model"] = usage.model
    if By.BATCH in by:
        keys["batch_id"] = usage.batch_id
    if By.KEY in by:
        keys["api_key"] = ApiKey.name.label("api_key")
        keys["api_key_id"] = usage.api_key_id
    return keys


def _group(row: Row[Any], by: Sequence[By]) -> Group:
    return Group(**{name: getattr(row, name) for name in _keys(MeteredUsage, by)})


def _count_requests(meter: InstrumentedAttribute[Meter]) -> ColumnElement[int]:
    # Each request has exactly one event of output.
    return func.count().filter(meter == Meter.OUTPUT).label("num_requests")


def _tokens(
    meter: InstrumentedAttribute[Meter],
    quantity: InstrumentedAttribute[int] | InstrumentedAttribute[int | None],
    wanted: Meter,
) -> ColumnElement[int | None]:
    return func.coalesce(func.sum(quantity).filter(meter == wanted), 0).label(f"{wanted}_tokens")


def _price(meter: Meter, name: str) -> ColumnElement[Decimal | None]:
    """Of the line's card and model, where one price holds for all tokens."""
    return (
        select(Rate.unit_price)
        .where(
            Rate.rate_card_id == RateCard.id,
            Rate.model == RatedUsage.model,
            Rate.meter == meter,
            Rate.pricing == Pricing.FLAT,
            Rate.minimum == 0,
        )
        .scalar_subquery()
        .label(name)
    )


def _amount(wanted: Meter) -> ColumnElement[Decimal]:
    total = func.sum(RatedUsage.amount).filter(RatedUsage.meter == wanted)
    return cast(func.coalesce(total, 0), Numeric).label(f"{wanted}_amount")


def _of_month(
    query: Select[*tuple[Any, ...]], usage: _Usage, month: Month, tenant_id: str | None
) -> Select[*tuple[Any, ...]]:
    query = (
        query.join(Tenant, Tenant.id == usage.tenant_id)
        .join(ApiKey, ApiKey.id == usage.api_key_id)
        .where(usage.occurred_at >= month.start, usage.occurred_at < month.end)
    )
    return query if tenant_id is None else query.where(usage.tenant_id == tenant_id)


def check_all_kept(session: Session, month: Month, tenant_id: str | None) -> None:
    """Raises DroppedUsageError."""
    query = select(ArchivedUsage.starts_at).where(
        ArchivedUsage.starts_at >= month.start, ArchivedUsage.starts_at < month.end
    )
    if tenant_id is not None:
        query = query.where(ArchivedUsage.tenant_id == tenant_id)
    if session.execute(query.limit(1)).first() is not None:
        raise DroppedUsageError(
            f"Usage events of {month} are no longer kept. The month's invoices have what it cost, and the roll-ups, as "
            "/v1/organization/usage/completions shows them, its tokens by day."
        )


def check_all_rated(session: Session, month: Month, tenant_id: str | None) -> None:
    """Raises UnratedUsageError where a usage event of the month has no price."""
    query = select(func.count()).select_from(RatedUsage).where(RatedUsage.revision.is_(None))
    num_unrated = session.execute(_of_month(query, RatedUsage, month, tenant_id)).scalar_one()
    if num_unrated:
        raise UnratedUsageError(f"{num_unrated} usage events of {month} have no price; no bill is made without them.")
