"""Usage and costs of a tenant in buckets of time, as `/v1/organization` shows them: read from roll-ups.

Minutes are read from the events themselves, as far as they are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import BigInteger, ColumnElement, Select, case, cast, func, literal, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from pipeline.tables import Meter, MeteredUsage, Period, UsageRollup
from pipeline.tenancy.tenants import default_project_id


class Width(StrEnum):
    """Of a bucket; it begins with a minute, an hour or a day in UTC."""

    MINUTE = "1m"
    HOUR = "1h"
    DAY = "1d"

    @property
    def length(self) -> timedelta:
        return _LENGTHS[self]


_LENGTHS: Final = {Width.MINUTE: timedelta(minutes=1), Width.HOUR: timedelta(hours=1), Width.DAY: timedelta(days=1)}
_PERIODS: Final = {Width.HOUR: Period.HOUR, Width.DAY: Period.DAY}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class UsageBy(StrEnum):
    """What the results of a bucket can be split by. There are no users, and every request is of a batch."""

    PROJECT = "project_id"
    USER = "user_id"
    KEY = "api_key_id"
    MODEL = "model"
    BATCH = "batch"
    SERVICE_TIER = "service_tier"


class CostsBy(StrEnum):
    PROJECT = "project_id"
    USER = "user_id"
    KEY = "api_key_id"
    LINE_ITEM = "line_item"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Buckets `width` long from `starts_at` on, before `ends_at`, which are both the beginning of one.

    An empty filter lets all through.
    """

    tenant_id: str
    width: Width
    starts_at: datetime
    ends_at: datetime
    project_ids: Sequence[str] = ()
    api_key_ids: Sequence[str] = ()
    models: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class UsageResult:
    """What is None was not asked to be told apart."""

    starts_at: datetime
    project_id: str | None
    api_key_id: str | None
    model: str | None
    service_class: str | None
    num_requests: int
    num_input_uncached_tokens: int
    num_input_cached_tokens: int
    num_output_tokens: int


@dataclass(frozen=True, kw_only=True)
class CostResult:
    """What is None was not asked to be told apart; with line items, `model` and `meter` are one."""

    starts_at: datetime
    project_id: str | None
    api_key_id: str | None
    model: str | None
    meter: str | None
    #: Tokens.
    quantity: int
    #: None for usage that has no price: it is not free.
    currency: str | None
    amount: Decimal | None

    @property
    def line_item(self) -> str | None:
        return None if self.model is None or self.meter is None else line_item(self.model, self.meter)


def line_item(model: str, meter: str) -> str:
    return f"{model}, {meter}_tokens"


def bucket_of(moment: datetime, width: Width) -> datetime:
    """The beginning of the bucket that a moment is in."""
    return moment - (moment - _EPOCH) % width.length


def usage_results(session: Session, wanted: Wanted, by: Sequence[UsageBy] = ()) -> list[UsageResult]:
    """Results of the buckets that have any, by time."""
    source = _source(wanted)
    return _usage(session, source, source.starts_at, by)


def usage_totals(session: Session, wanted: Wanted, by: Sequence[UsageBy] = ()) -> list[UsageResult]:
    """The same of all buckets together, which then begin with the first one."""
    source = _source(wanted)
    return _usage(session, source, literal(wanted.starts_at).label("starts_at"), by)


def _usage(
    session: Session, source: Any, starts_at: ColumnElement[datetime], by: Sequence[UsageBy]
) -> list[UsageResult]:
    keys = {
        "project_id": UsageBy.PROJECT in by,
        "api_key_id": UsageBy.KEY in by,
        "model": UsageBy.MODEL in by,
        "service_class": UsageBy.SERVICE_TIER in by,
    }
    meters = (Meter.INPUT_UNCACHED, Meter.INPUT_CACHED, Meter.OUTPUT)
    query = select(
        starts_at,
        *_told_apart(source, keys),
        _sum(source.num_events, source.meter == Meter.OUTPUT).label("num_requests"),
        *(_sum(source.quantity, source.meter == meter).label(f"num_{meter}_tokens") for meter in meters),
    )
    return [UsageResult(**row._mapping) for row in session.execute(_in_buckets(query, source, keys, starts_at))]


def cost_results(
    session: Session, wanted: Wanted, by: Sequence[CostsBy] = (), line_items: Sequence[str] = ()
) -> list[CostResult]:
    """The same for costs, of hours or days: a result for each currency, and one for what has no price."""
    source = _source(wanted)
    keys = {
        "project_id": CostsBy.PROJECT in by,
        "api_key_id": CostsBy.KEY in by,
        "model": CostsBy.LINE_ITEM in by,
        "meter": CostsBy.LINE_ITEM in by,
        "currency": True,
    }
    query = select(
        source.starts_at,
        *_told_apart(source, keys),
        _sum(source.quantity).label("quantity"),
        case((source.currency.is_not(None), func.sum(source.amount))).label("amount"),
    )
    if line_items:
        query = query.where(func.concat(source.model, ", ", source.meter, "_tokens").in_(line_items))
    return [CostResult(**row._mapping) for row in session.execute(_in_buckets(query, source, keys, source.starts_at))]


def _source(wanted: Wanted) -> Any:
    """The columns of what buckets are added up from, as far as it is wanted."""
    if wanted.width is Width.MINUTE:
        return _events(wanted)
    rows = select(
        UsageRollup.starts_at,
        UsageRollup.project_id,
        UsageRollup.api_key_id,
        UsageRollup.model,
        UsageRollup.service_class,
        UsageRollup.meter,
        func.nullif(UsageRollup.currency, "").label("currency"),
        UsageRollup.num_events,
        UsageRollup.quantity,
        UsageRollup.amount,
    ).where(
        UsageRollup.tenant_id == wanted.tenant_id,
        UsageRollup.period == _PERIODS[wanted.width],
        UsageRollup.starts_at >= wanted.starts_at,
        UsageRollup.starts_at < wanted.ends_at,
    )
    return _filtered(rows, UsageRollup, UsageRollup.project_id, wanted)


def _events(wanted: Wanted) -> Any:
    project_id = func.coalesce(MeteredUsage.project_id, default_project_id(wanted.tenant_id))
    rows = select(
        func.date_trunc("minute", MeteredUsage.occurred_at, "UTC").label("starts_at"),
        project_id.label("project_id"),
        MeteredUsage.api_key_id,
        MeteredUsage.model,
        MeteredUsage.service_class,
        MeteredUsage.meter,
        literal(1).label("num_events"),
        MeteredUsage.quantity,
    ).where(
        MeteredUsage.tenant_id == wanted.tenant_id,
        MeteredUsage.occurred_at >= wanted.starts_at,
        MeteredUsage.occurred_at < wanted.ends_at,
    )
    return _filtered(rows, MeteredUsage, project_id, wanted)


def _filtered(
    rows: Select[*tuple[Any, ...]],
    table: type[UsageRollup | MeteredUsage],
    project_id: ColumnElement[str] | InstrumentedAttribute[str],
    wanted: Wanted,
) -> Any:
    if wanted.project_ids:
        rows = rows.where(project_id.in_(wanted.project_ids))
    if wanted.api_key_ids:
        rows = rows.where(table.api_key_id.in_(wanted.api_key_ids))
    if wanted.models:
        rows = rows.where(table.model.in_(wanted.models))
    return rows.subquery().c


def _told_apart(source: Any, keys: dict[str, bool]) -> list[ColumnElement[Any]]:
    return [source[name] if is_split else literal(None).label(name) for name, is_split in keys.items()]


def _sum(column: ColumnElement[int], condition: ColumnElement[bool] | None = None) -> ColumnElement[int]:
    total = func.sum(column) if condition is None else func.sum(column).filter(condition)
    return cast(func.coalesce(total, 0), BigInteger)


def _in_buckets(
    query: Select[*tuple[Any, ...]], source: Any, keys: dict[str, bool], starts_at: ColumnElement[datetime]
) -> Select[*tuple[Any, ...]]:
    split = [starts_at, *(source[name] for name, is_split in keys.items() if is_split)]
    # Roll-ups of what was wrong and made up for come to nothing.
    return query.group_by(*split).having(func.sum(source.num_events) != 0).order_by(*split)
