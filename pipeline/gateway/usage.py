"""`/v1/organization`: usage and costs of the caller's tenant, in OpenAI's shape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Final, Literal, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from pipeline.billing.usage_buckets import CostsBy, UsageBy, Wanted, Width, bucket_of, cost_results, usage_results
from pipeline.gateway.auth import UsageReader
from pipeline.gateway.errors import invalid
from pipeline.schemas.usage import (
    BucketPage,
    CostsBucket,
    CostsPage,
    CostsResult,
    UsageCompletionsBucket,
    UsageCompletionsPage,
    UsageCompletionsResult,
    page_json,
)
from pipeline.tables.session import transaction
from pipeline.tenancy.keys import Principal

router = APIRouter(prefix="/v1/organization", tags=["usage"])

#: Buckets of a page: by default, and at most.
_LIMITS: Final = {Width.MINUTE: (60, 1440), Width.HOUR: (24, 168), Width.DAY: (7, 31)}
_COSTS_LIMITS: Final = (7, 180)
#: The last of the year 9998, so that every bucket's end is a moment.
_LAST_SECOND: Final = 253_370_764_799
#: Values of one filter.
_MOST_VALUES: Final = 1_000
#: What `next_page` is spelled with, before the second that its first bucket begins with.
_PAGE_PREFIX: Final = "page_"

_Seconds = Annotated[int, Query(ge=0, le=_LAST_SECOND, description="Unix seconds.")]
# The client of OpenAI sends lists as `name[]=a&name[]=b`; `name=a&name=b` is understood as well.
_Values = Annotated[list[str] | None, Query(max_length=_MOST_VALUES)]
_Limit = Annotated[int | None, Query(ge=1, le=_LIMITS[Width.MINUTE][1])]


@router.get("/usage/completions", response_model=UsageCompletionsPage)
def get_usage_completions(
    request: Request,
    caller: UsageReader,
    start_time: _Seconds,
    end_time: Annotated[int | None, Query(ge=0, le=_LAST_SECOND)] = None,
    bucket_width: Width = Width.DAY,
    project_ids: _Values = None,
    user_ids: _Values = None,
    api_key_ids: _Values = None,
    models: _Values = None,
    batch: bool | None = None,
    group_by: Annotated[list[UsageBy] | None, Query()] = None,
    limit: _Limit = None,
    page: str | None = None,
) -> Response:
    """Tokens and requests by minute, hour or day, of buckets that begin at or after the one of `start_time`."""
    by = _choices(request, "group_by", group_by, UsageBy)
    _refuse_users(request, user_ids)
    span = _span(start_time, end_time, bucket_width, _limit(limit, _LIMITS[bucket_width], bucket_width), page)
    found: dict[datetime, list[UsageCompletionsResult]] = defaultdict(list)
    wanted = _wanted(request, caller, span, project_ids, api_key_ids, models)
    if wanted is not None and batch is not False:  # there is nothing but batches
        with transaction() as session:
            for result in usage_results(session, wanted, by):
                found[result.starts_at].append(UsageCompletionsResult.of(result, by))
    buckets = [UsageCompletionsBucket(**span.times(at), results=found[at]) for at in span.starts]
    return _answer(UsageCompletionsPage(data=buckets, has_more=span.has_more, next_page=span.next_page))


@router.get("/costs", response_model=CostsPage)
def get_costs(
    request: Request,
    caller: UsageReader,
    start_time: _Seconds,
    end_time: Annotated[int | None, Query(ge=0, le=_LAST_SECOND)] = None,
    bucket_width: Literal["1d"] = "1d",
    project_ids: _Values = None,
    user_ids: _Values = None,
    api_key_ids: _Values = None,
    line_items: _Values = None,
    group_by: Annotated[list[CostsBy] | None, Query()] = None,
    limit: Annotated[int | None, Query(ge=1, le=_COSTS_LIMITS[1])] = None,
    page: str | None = None,
) -> Response:
    """Exact costs by day. An amount is null for usage that has no price yet."""
    width = Width(bucket_width)
    by = _choices(request, "group_by", group_by, CostsBy)
    _refuse_users(request, user_ids)
    span = _span(start_time, end_time, width, _limit(limit, _COSTS_LIMITS, width), page)
    found: dict[datetime, list[CostsResult]] = defaultdict(list)
    wanted = _wanted(request, caller, span, project_ids, api_key_ids, None)
    if wanted is not None:
        with transaction() as session:
            for result in cost_results(session, wanted, by, _values(request, "line_items", line_items)):
                found[result.starts_at].append(CostsResult.of(result, by))
    buckets = [CostsBucket(**span.times(at), results=found[at]) for at in span.starts]
    return _answer(CostsPage(data=buckets, has_more=span.has_more, next_page=span.next_page))


@dataclass(frozen=True)
class _Span:
    """The buckets of one page."""

    width: Width
    starts: Sequence[datetime]
    #: Where they end.
    ends_at: datetime
    has_more: bool

    @property
    def next_page(self) -> str | None:
        return f"{_PAGE_PREFIX}{int(self.ends_at.timestamp())}" if self.has_more else None

    def times(self, starts_at: datetime) -> dict[str, int]:
        return {
            "start_time": int(starts_at.timestamp()),
            "end_time": int((starts_at + self.width.length).timestamp()),
        }


def _span(start_time: int, end_time: int | None, width: Width, limit: int, page: str | None) -> _Span:
    """Whole buckets: from the one that `start_time` is in, to the one that the last moment before `end_time` is in."""
    if end_time is not None and end_time <= start_time:
        raise invalid("end_time", f"Invalid 'end_time': {end_time} is not after 'start_time', which is {start_time}.")
    first = bucket_of(datetime.fromtimestamp(start_time, UTC), width)
    last_second = int(datetime.now(UTC).timestamp()) if end_time is None else end_time - 1
    end = bucket_of(datetime.fromtimestamp(last_second, UTC), width) + width.length
    start = first if page is None else _page_start(page, width)
    if start < first or start > max(first, end):
        raise _unknown_page(page)
    starts: list[datetime] = []
    while len(starts) < limit and start < end:
        starts.append(start)
        start += width.length
    return _Span(width, starts, start, has_more=start < end)


def _page_start(page: str, width: Width) -> datetime:
    digits = page.removeprefix(_PAGE_PREFIX)
    if digits == page or not (digits.isascii() and digits.isdigit() and len(digits) <= 12):
        raise _unknown_page(page)
    if int(digits) > _LAST_SECOND:
        raise _unknown_page(page)
    start = datetime.fromtimestamp(int(digits), UTC)
    if start != bucket_of(start, width):
        raise _unknown_page(page)
    return start


def _unknown_page(page: str | None) -> Exception:
    return invalid(
        "page",
        f"Invalid 'page': {(page or '')[:32]!r} is no 'next_page' of this query. Send the other parameters unchanged.",
    )


def _limit(limit: int | None, limits: tuple[int, int], width: Width) -> int:
    default, most = limits
    if limit is not None and limit > most:
        raise invalid("limit", f"Invalid 'limit': {limit} is too many buckets of {width}; {most} at most.")
    return default if limit is None else limit


def _wanted(
    request: Request,
    caller: Principal,
    span: _Span,
    project_ids: list[str] | None,
    api_key_ids: list[str] | None,
    models: list[str] | None,
) -> Wanted | None:
    """None where nothing can be in it. A key of a project sees that project alone."""
    projects = _values(request, "project_ids", project_ids)
    if caller.project_id is not None:
        if projects and caller.project_id not in projects:
            return None
        projects = [caller.project_id]
    if not span.starts:
        return None
    return Wanted(
        tenant_id=caller.tenant_id,
        width=span.width,
        starts_at=span.starts[0],
        ends_at=span.ends_at,
        project_ids=projects,
        api_key_ids=_values(request, "api_key_ids", api_key_ids),
        models=_values(request, "models", models),
    )


def _values(request: Request, name: str, plain: Sequence[str] | None) -> list[str]:
    values = [*(plain or ()), *request.query_params.getlist(f"{name}[]")]
    if len(values) > _MOST_VALUES:
        raise invalid(name, f"Invalid '{name}': {len(values)} values; {_MOST_VALUES} at most.")
    return values


Choice = TypeVar("Choice", bound=StrEnum)


def _choices(request: Request, name: str, plain: Sequence[Choice] | None, kind: type[Choice]) -> list[Choice]:
    values = _values(request, name, plain)
    for value in values:
        if value not in set(kind):
            raise invalid(name, f"Invalid '{name}': {value[:32]!r} is not one of {', '.join(kind)}.")
    return [kind(value) for value in values]


def _refuse_users(request: Request, user_ids: list[str] | None) -> None:
    if _values(request, "user_ids", user_ids):
        raise invalid("user_ids", "Invalid 'user_ids': usage is kept by project and key; there are no users.")


def _answer(page: BucketPage) -> Response:
    return Response(page_json(page), media_type="application/json")
