"""What a month has cost so far, by line item and day, and the invoices of the months before."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, StreamingResponse

from pipeline.billing.currencies import decimal_text
from pipeline.billing.rating import exact_sum
from pipeline.billing.reports import Month
from pipeline.billing.tenant_totals import tenant_totals
from pipeline.billing.usage_buckets import CostResult, CostsBy, Wanted, Width, cost_results
from pipeline.console.charts import stacked_columns
from pipeline.console.rendering import render
from pipeline.console.signing_in import viewer_with
from pipeline.errors import UserError
from pipeline.gateway.auth import check_whole_tenant
from pipeline.gateway.errors import invalid
from pipeline.gateway.invoices import FormName, retrieve_invoice_form
from pipeline.paging import read_page
from pipeline.tables import Invoice
from pipeline.tables.session import transaction
from pipeline.tenancy.console_sessions import Viewer
from pipeline.tenancy.keys import Principal
from pipeline.tenancy.scopes import Scope

router = APIRouter()

#: Line items that the chart tells apart; what cost less is together.
_MOST_SERIES: Final = 5
_NUM_INVOICES: Final = 12
#: In the order in which people want them.
_FORMS: Final = ("pdf", "xlsx", "csv", "json", "html", "focus", "journal")


@dataclass(frozen=True)
class Item:
    """A line item of a month. Tokens and their exact costs."""

    name: str
    quantity: int
    amount: Decimal


@dataclass(frozen=True)
class CurrencyCosts:
    """What a month has cost in one currency."""

    currency: str
    total: Decimal
    items: Sequence[Item]
    #: Costs by day, UTC.
    days: Sequence[tuple[datetime, Decimal]]
    chart: dict[str, Any]


Looker = Annotated[Viewer, Depends(viewer_with(Scope.USAGE_READ))]


@router.get("/costs")
def show_costs(request: Request, viewer: Looker, month: str | None = None, after: str | None = None) -> HTMLResponse:
    now = datetime.now(UTC)
    shown = _month(month, now)
    caller = viewer.principal
    starts_at, ends_at = shown.start, min(shown.end, _day_after(now))
    wanted = Wanted(
        tenant_id=caller.tenant_id,
        width=Width.DAY,
        starts_at=starts_at,
        ends_at=ends_at,
        project_ids=[caller.project_id] if caller.project_id else [],
    )
    with transaction() as session:
        results = cost_results(session, wanted, [CostsBy.LINE_ITEM])
        tenants = tenant_totals(session, starts_at, ends_at) if viewer.is_operator else []
        invoices = (
            read_page(session, Invoice, caller.tenant_id, after=after, limit=_NUM_INVOICES)
            if _may_see_invoices(caller)
            else None
        )
    days = [starts_at + timedelta(days=number) for number in range((ends_at - starts_at).days)]
    return render(
        request,
        "costs.html",
        month=shown,
        is_present=shown == Month.of(now),
        month_before=Month.of(shown.start - timedelta(days=1)),
        month_after=Month.of(shown.end) if shown.end <= now else None,
        currencies=_by_currency(results, days),
        num_unpriced_tokens=sum(result.quantity for result in results if result.currency is None),
        tenants=tenants,
        invoices=invoices,
        month_of=Month.of_day,
        forms=_FORMS,
        after=after,
    )


@router.get("/invoices/{invoice_id}/{form}")
def download_invoice(
    viewer: Annotated[Viewer, Depends(viewer_with(Scope.INVOICES_READ))], invoice_id: str, form: FormName
) -> StreamingResponse:
    """The same file as the API gives."""
    check_whole_tenant(viewer.principal)
    return retrieve_invoice_form(viewer.principal, invoice_id, form)


def _may_see_invoices(caller: Principal) -> bool:
    return caller.may(Scope.INVOICES_READ) and caller.project_id is None


def _month(text: str | None, now: datetime) -> Month:
    """The present one where none is given. Raises ApiError (400)."""
    present = Month.of(now)
    if text is None:
        return present
    try:
        chosen = Month.parse(text)
    except UserError as error:
        raise invalid("month", str(error)) from None
    if not Month(2000, 1).start <= chosen.start <= present.start:
        raise invalid("month", f"There are no costs of {chosen}: give a month from 2000-01 to {present}.")
    return chosen


def _day_after(now: datetime) -> datetime:
    return now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)


def _by_currency(results: Sequence[CostResult], days: Sequence[datetime]) -> list[CurrencyCosts]:
    found: dict[str, list[CostResult]] = defaultdict(list)
    for result in results:
        if result.currency is not None:
            found[result.currency].append(result)
    return [_currency_costs(currency, found[currency], days) for currency in sorted(found)]


def _currency_costs(currency: str, results: Sequence[CostResult], days: Sequence[datetime]) -> CurrencyCosts:
    by_item: dict[str, list[CostResult]] = defaultdict(list)
    for result in results:
        by_item[result.line_item or ""].append(result)
    items = [Item(name, sum(result.quantity for result in group), _sum(group)) for name, group in by_item.items()]
    items.sort(key=lambda item: (-item.amount, item.name))
    shown = [item.name for item in items[:_MOST_SERIES]]
    series = {name: _by_day(by_item[name], days) for name in shown}
    if rest := [result for result in results if result.line_item not in shown]:
        series["all others"] = _by_day(rest, days)
    per_day = [(day, _sum([result for result in results if result.starts_at == day])) for day in days]
    chart = stacked_columns(days, {name: list(map(decimal_text, values)) for name, values in series.items()}, currency)
    return CurrencyCosts(currency, _sum(results), items, per_day, chart)


def _by_day(results: Sequence[CostResult], days: Sequence[datetime]) -> list[Decimal]:
    found: dict[datetime, list[CostResult]] = defaultdict(list)
    for result in results:
        found[result.starts_at].append(result)
    return [_sum(found[day]) for day in days]


def _sum(results: Sequence[CostResult]) -> Decimal:
    return exact_sum(result.amount for result in results if result.amount is not None)
