"""Quotes: what is wrong with an input file, line by line, or what it would cost; and the batch that is made of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import ValidationError
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session, defer

from pipeline.console.batch_actions import Writer
from pipeline.console.batch_requests import MOST_LINE_BYTES
from pipeline.console.batches import Reader
from pipeline.console.failures import not_found
from pipeline.console.input_text import LineText, read_input_lines
from pipeline.console.rendering import render, see_other
from pipeline.console.request_rows import LineError
from pipeline.console.signing_in import SignedForm
from pipeline.gateway.batches import create_batch
from pipeline.gateway.errors import ApiError, invalid
from pipeline.gateway.input_files import batch_input_file
from pipeline.jobs import outbox
from pipeline.jobs.quoting import request_quote
from pipeline.schemas.batches import ENDPOINTS, BatchCreate
from pipeline.schemas.quotes import QuoteCreate
from pipeline.schemas.service_classes import windows_of
from pipeline.storage import BlobNotFoundError
from pipeline.tables import File, OnInvalid, Quote, QuoteStatus, ServiceClass
from pipeline.tables.session import transaction
from pipeline.tenancy.keys import Principal
from pipeline.tenancy.scopes import Scope

router = APIRouter()

#: Errors on a page.
_PAGE: Final = 50
#: Offered; any other can be written.
_WINDOWS: Final = ("1h", "6h", "24h", "3d", "7d")

# The list may be as long as a file: what a page needs is cut out of it by the database.
_ERRORS: Final = text("""
    SELECT e.number, e.error FROM quotes, LATERAL jsonb_array_elements(errors) WITH ORDINALITY e (error, number)
    WHERE id = :quote_id AND jsonb_typeof(errors) = 'array' AND e.number > :after ORDER BY e.number LIMIT :limit
""")


@router.get("/quotes/{quote_id}")
def show_quote(
    request: Request, viewer: Reader, quote_id: str, after: Annotated[int, Query(ge=0, lt=2**63)] = 0
) -> Response:
    return _quote_page(request, viewer.principal, quote_id, after=after)


@router.post("/quotes")
def ask_again(viewer: Writer, form: SignedForm) -> Response:
    """Of the same file, for another endpoint or class, or with invalid lines skipped."""
    try:
        wanted = QuoteCreate.model_validate(_given(form, "input_file_id", "endpoint", "on_invalid", "service_class"))
    except ValidationError as error:
        raise _mistake(error) from None
    quote_id = ask_for_quote(
        viewer.principal,
        file_id=wanted.input_file_id,
        endpoint=wanted.endpoint,
        on_invalid=wanted.on_invalid,
        service_class=wanted.service_class,
    )
    return see_other(f"/console/quotes/{quote_id}")


@router.post("/quotes/{quote_id}/batch")
def make_batch(request: Request, viewer: Writer, form: SignedForm, quote_id: str) -> Response:
    """A batch at the quoted price. Pressing the button twice makes one: `once` names the press."""
    with transaction() as session:
        quote = _find(session, viewer.principal, quote_id)
    fields = _given(form, "completion_window", "max_cost")
    try:
        body = BatchCreate.model_validate(
            {
                **fields,
                "input_file_id": quote.input_file_id,
                "endpoint": quote.endpoint,
                "service_class": quote.service_class,
                "on_invalid": quote.on_invalid,
                "quote_id": quote.id,
            }
        )
    except ValidationError as error:
        mistake = _mistake(error)
        return _quote_page(request, viewer.principal, quote_id, status=400, fields=fields, mistake=mistake)
    batch = create_batch(request, viewer.principal, body, None, form.get("once") or None)
    return see_other(f"/console/batches/{batch.id}")


def ask_for_quote(
    caller: Principal, *, file_id: str, endpoint: str, on_invalid: OnInvalid, service_class: ServiceClass
) -> str:
    """The id of a quote that control computes. Raises ApiError (400) for a file that the caller has not."""
    with transaction() as session:
        quote = request_quote(
            session,
            tenant_id=caller.tenant_id,
            api_key_id=caller.api_key_id,
            project_id=caller.project_id,
            input_file=batch_input_file(session, caller, file_id),
            endpoint=endpoint,
            on_invalid=on_invalid,
            service_class=service_class,
        )
    outbox.publish_soon()
    return quote.id


def _quote_page(
    request: Request,
    caller: Principal,
    quote_id: str,
    *,
    after: int = 0,
    status: int = 200,
    fields: Mapping[str, str] | None = None,
    mistake: ApiError | None = None,
) -> Response:
    with transaction() as session:
        quote = _find(session, caller, quote_id)
        file = session.get_one(File, quote.input_file_id)
        now = session.execute(select(func.now())).scalar_one()
        rows = session.execute(_ERRORS, {"quote_id": quote.id, "after": after, "limit": _PAGE + 1}).all()
    errors = [_error(row.error) for row in rows[:_PAGE]]
    path = f"/console/quotes/{quote.id}"
    return render(
        request,
        "quote.html",
        status=status,
        quote=quote,
        file=file,
        is_computing=quote.status is QuoteStatus.COMPUTING,
        is_expired=quote.expires_at <= now,
        errors=errors,
        lines=_lines(file, errors) if caller.may(Scope.FILES_READ) else {},
        first_url=path if after else None,
        next_url=f"{path}?after={rows[_PAGE - 1].number}" if len(rows) > _PAGE else None,
        endpoints=ENDPOINTS,
        classes=list(ServiceClass),
        windows=_WINDOWS,
        allowed_windows=windows_of(quote.service_class),
        fields={"completion_window": "24h", "max_cost": "", **(fields or {})},
        mistake=mistake,
        now=now,
    )


def _find(session: Session, caller: Principal, quote_id: str) -> Quote:
    query = select(Quote).where(Quote.tenant_id == caller.tenant_id, Quote.id == quote_id)
    if caller.project_id is not None:
        query = query.where(Quote.project_id == caller.project_id)
    quote = session.execute(query.options(defer(Quote.errors, raiseload=True))).scalar_one_or_none()
    if quote is None:
        raise not_found("quote")
    return quote


def _given(form: Mapping[str, str], *names: str) -> dict[str, Any]:
    """What was filled in."""
    return {name: form[name].strip() for name in names if form.get(name, "").strip()}


def _mistake(error: ValidationError) -> ApiError:
    """The first of them, said as the API says it."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    reason = str(first.get("ctx", {}).get("error") or first["msg"])
    return invalid(name, f"Invalid '{name}': {reason}")


def _error(found: Mapping[str, Any]) -> LineError:
    return LineError(
        line=found.get("line") or 0,
        custom_id=None,
        code=found["code"],
        param=found.get("param"),
        message=found["message"],
    )


def _lines(file: File, errors: list[LineError]) -> dict[int, LineText]:
    if file.storage_key is None or file.deleted_at is not None:
        return {}
    try:
        return read_input_lines(file.storage_key, [error.line for error in errors], MOST_LINE_BYTES)
    except BlobNotFoundError:
        return {}
