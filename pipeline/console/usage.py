"""What was used: by time, and by model, key, project or class."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from sqlalchemy import select
from sqlalchemy.orm import Session

from pipeline.billing.tenant_totals import tenant_totals
from pipeline.billing.usage_buckets import UsageBy, UsageResult, Wanted, Width, bucket_of, usage_results, usage_totals
from pipeline.console.charts import stacked_columns
from pipeline.console.rendering import render
from pipeline.console.signing_in import viewer_with
from pipeline.tables import ApiKey, Project
from pipeline.tables.session import transaction
from pipeline.tenancy.console_sessions import Viewer
from pipeline.tenancy.keys import Principal
from pipeline.tenancy.scopes import Scope

router = APIRouter()

#: Rows of what is split by something, those that used most.
_MOST_ROWS: Final = 50


class Span(StrEnum):
    """How far back a page looks."""

    DAY = "24h"
    WEEK = "7d"
    MONTH = "30d"
    QUARTER = "90d"

    @property
    def words(self) -> str:
        return _SPANS[self][0]

    @property
    def width(self) -> Width:
        return _SPANS[self][1]

    @property
    def num_buckets(self) -> int:
        return _SPANS[self][2]


_SPANS: Final[Mapping[Span, tuple[str, Width, int]]] = {
    Span.DAY: ("24 hours", Width.HOUR, 24),
    Span.WEEK: ("7 days", Width.DAY, 7),
    Span.MONTH: ("30 days", Width.DAY, 30),
    Span.QUARTER: ("90 days", Width.DAY, 90),
}


class SplitBy(StrEnum):
    """What usage is told apart by."""

    MODEL = "model"
    KEY = "key"
    PROJECT = "project"
    CLASS = "class"


_SPLITS: Final[Mapping[SplitBy, tuple[UsageBy, Callable[[UsageResult], str | None]]]] = {
    SplitBy.MODEL: (UsageBy.MODEL, lambda result: result.model),
    SplitBy.KEY: (UsageBy.KEY, lambda result: result.api_key_id),
    SplitBy.PROJECT: (UsageBy.PROJECT, lambda result: result.project_id),
    SplitBy.CLASS: (UsageBy.SERVICE_TIER, lambda result: result.service_class),
}


@dataclass(frozen=True)
class Counts:
    """What was used of one bucket, or of one model, key, project or class."""

    num_requests: int = 0
    num_input_uncached_tokens: int = 0
    num_input_cached_tokens: int = 0
    num_output_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        return self.num_input_uncached_tokens + self.num_input_cached_tokens + self.num_output_tokens

    @classmethod
    def sum_of(cls, results: Sequence[UsageResult]) -> Counts:
        return cls(*(sum(getattr(result, field.name) for result in results) for field in fields(cls)))


Looker = Annotated[Viewer, Depends(viewer_with(Scope.USAGE_READ))]


@router.get("/usage")
def show_usage(
    request: Request, viewer: Looker, span: Span = Span.MONTH, by: SplitBy = SplitBy.MODEL, model: str | None = None
) -> HTMLResponse:
    wanted = _wanted(viewer.principal, span, model)
    with transaction() as session:
        found = {result.starts_at: result for result in usage_results(session, wanted)}
        split = usage_totals(session, wanted, [_SPLITS[by][0]])
        names = _names(session, by, split)
        models = _models(session, viewer.principal, span)
        tenants = tenant_totals(session, wanted.starts_at, wanted.ends_at) if _shows_tenants(viewer, span) else []
    starts = list(_starts(wanted))
    rows = [(start, Counts.sum_of([found[start]] if start in found else [])) for start in starts]
    return render(
        request,
        "usage.html",
        span=span,
        spans=list(Span),
        by=by,
        splits=list(SplitBy),
        model=model,
        models=models,
        total=Counts.sum_of(list(found.values())),
        buckets=rows,
        is_hourly=span.width is Width.HOUR,
        chart=_chart(rows),
        split=_split_rows(split, by, names)[:_MOST_ROWS],
        num_split=len(split),
        tenants=tenants,
        csv_url="/console/usage.csv?" + urlencode({"span": span, "by": by, **({"model": model} if model else {})}),
    )


@router.get("/usage.csv", include_in_schema=False)
def download_usage(
    viewer: Looker, span: Span = Span.MONTH, by: SplitBy = SplitBy.MODEL, model: str | None = None
) -> Response:
    """A line for each bucket and model (or whatever it is told apart by) that has any usage."""
    wanted = _wanted(viewer.principal, span, model)
    with transaction() as session:
        results = usage_results(session, wanted, [_SPLITS[by][0]])
    headers = {"content-disposition": f'attachment; filename="usage-{span}-by-{by}.csv"', "cache-control": "no-store"}
    return StreamingResponse(_csv(results, by), media_type="text/csv; charset=utf-8", headers=headers)


def _wanted(caller: Principal, span: Span, model: str | None) -> Wanted:
    """Whole buckets, of which the last is the present one."""
    ends_at = bucket_of(datetime.now(UTC), span.width) + span.width.length
    return Wanted(
        tenant_id=caller.tenant_id,
        width=span.width,
        starts_at=ends_at - span.num_buckets * span.width.length,
        ends_at=ends_at,
        project_ids=[caller.project_id] if caller.project_id else [],
        models=[model] if model else [],
    )


def _starts(wanted: Wanted) -> Iterator[datetime]:
    count = (wanted.ends_at - wanted.starts_at) // wanted.width.length
    return (wanted.starts_at + number * wanted.width.length for number in range(count))


def _shows_tenants(viewer: Viewer, span: Span) -> bool:
    """Totals are of whole days."""
    return viewer.is_operator and span.width is Width.DAY


def _models(session: Session, caller: Principal, span: Span) -> list[str]:
    """Those that can be chosen: all that were used, whichever is chosen now."""
    results = usage_totals(session, _wanted(caller, span, None), [UsageBy.MODEL])
    return sorted(result.model for result in results if result.model is not None)


def _chart(rows: Sequence[tuple[datetime, Counts]]) -> dict[str, Any]:
    series = {
        "Input": [counts.num_input_uncached_tokens for _, counts in rows],
        "Input from cache": [counts.num_input_cached_tokens for _, counts in rows],
        "Output": [counts.num_output_tokens for _, counts in rows],
    }
    return stacked_columns([start for start, _ in rows], series, "Tokens")


def _split_rows(results: Sequence[UsageResult], by: SplitBy, names: Mapping[str, str]) -> list[tuple[str, Counts]]:
    """Name and counts, those that used most first."""
    of = _SPLITS[by][1]
    found: dict[str, list[UsageResult]] = defaultdict(list)
    for result in results:
        found[of(result) or ""].append(result)
    rows = [(names.get(key, key), Counts.sum_of(group)) for key, group in found.items()]
    return sorted(rows, key=lambda row: (-row[1].num_tokens, row[0]))


def _names(session: Session, by: SplitBy, results: Sequence[UsageResult]) -> dict[str, str]:
    """Of keys and projects, by their ids. A key's name need not be the only one of its kind."""
    if by is SplitBy.KEY:
        ids = [result.api_key_id for result in results]
        rows = session.execute(select(ApiKey.id, ApiKey.name, ApiKey.short_id).where(ApiKey.id.in_(ids)))
        return {row.id: f"{row.name} (rz_{row.short_id}_…)" for row in rows}
    if by is SplitBy.PROJECT:
        ids = [result.project_id for result in results]
        return {
            row.id: row.name for row in session.execute(select(Project.id, Project.name).where(Project.id.in_(ids)))
        }
    return {}


def _csv(results: Sequence[UsageResult], by: SplitBy) -> Iterator[str]:
    of = _SPLITS[by][1]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["starts_at", str(by), *(field.name for field in fields(Counts))])
    for result in results:
        counts = [getattr(result, field.name) for field in fields(Counts)]
        writer.writerow([f"{result.starts_at:%Y-%m-%dT%H:%M:%SZ}", _plain(of(result) or ""), *counts])
        if text.tell() > 65_536:
            yield _taken(text)
    yield _taken(text)


def _taken(text: io.StringIO) -> str:
    taken = text.getvalue()
    text.seek(0)
    text.truncate()
    return taken


def _plain(name: str) -> str:
    """Not a formula to any program that opens the file: a model may be called anything."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name
