"""`/v1/batches/quote`."""

from __future__ import annotations

import asyncio
import time

from fastapi import APIRouter
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from pipeline.gateway.auth import BatchesReader, BatchesWriter
from pipeline.gateway.errors import ApiError, invalid
from pipeline.gateway.idempotency import IdempotencyKey, keyed_call
from pipeline.gateway.input_files import batch_input_file
from pipeline.jobs import outbox
from pipeline.jobs.idempotency import answer_once
from pipeline.jobs.quoting import request_quote
from pipeline.schemas.batches import BatchCreate
from pipeline.schemas.quotes import QuoteCreate, QuoteObject
from pipeline.tables import OnInvalid, Quote, QuoteStatus, ServiceClass
from pipeline.tables.session import transaction
from pipeline.tenancy.keys import Principal, check_still_valid

router = APIRouter(prefix="/v1/batches/quote", tags=["quotes"])

#: A quote that is ready within this is answered with at once; it leaves room within the deadline of every answer.
_WAIT_SECONDS = 6.0
_LOOK_SECONDS = 0.1


@router.post("")
async def create_quote(caller: BatchesWriter, body: QuoteCreate, idempotency_key: IdempotencyKey = None) -> QuoteObject:
    """What a batch of an input file would cost, and when it would be done; nothing is run.

    A large file takes longer than an answer may: the quote is then still `computing`, and can be retrieved.
    """
    limit = time.monotonic() + _WAIT_SECONDS
    quote = await run_in_threadpool(_request, caller, body, idempotency_key)
    while quote.status is QuoteStatus.COMPUTING and time.monotonic() < limit:
        await asyncio.sleep(_LOOK_SECONDS)
        quote = await run_in_threadpool(_read, caller, quote.id)
    return quote


@router.get("/{quote_id}")
def retrieve_quote(caller: BatchesReader, quote_id: str) -> QuoteObject:
    return _read(caller, quote_id)


def _request(caller: Principal, body: QuoteCreate, idempotency_key: str | None) -> QuoteObject:
    call = keyed_call(caller, "create_quote", idempotency_key, body.model_dump(mode="json", exclude_none=True))

    def request() -> QuoteObject:
        requested = request_quote(
            session,
            tenant_id=caller.tenant_id,
            api_key_id=caller.api_key_id,
            project_id=caller.project_id,
            input_file=batch_input_file(session, caller, body.input_file_id),
            endpoint=body.endpoint,
            on_invalid=body.on_invalid,
            service_class=body.service_class,
        )
        check_still_valid(session, caller)
        return QuoteObject.of(requested)

    with transaction() as session:
        quote = answer_once(session, call, request, QuoteObject)
    outbox.publish_soon()
    return quote


def _read(caller: Principal, quote_id: str) -> QuoteObject:
    with transaction() as session:
        return QuoteObject.of(find_quote(session, caller, quote_id))


def find_quote(session: Session, caller: Principal, quote_id: str) -> Quote:
    """A quote that the caller may see. Raises ApiError (404)."""
    query = select(Quote).where(Quote.tenant_id == caller.tenant_id, Quote.id == quote_id)
    if caller.project_id is not None:
        query = query.where(Quote.project_id == caller.project_id)
    quote = session.execute(query).scalar_one_or_none()
    if quote is None:
        raise ApiError(404, f"No quote found with id '{quote_id[:128]}'.", param="quote_id", code="quote_not_found")
    return quote


def agreed_quote(
    session: Session, caller: Principal, body: BatchCreate, on_invalid: OnInvalid, service_class: ServiceClass
) -> Quote:
    """The quote that a batch is created by. Raises ApiError (400) where it is not of this batch, or holds no more."""
    quote_id = body.quote_id or ""
    try:
        quote = find_quote(session, caller, quote_id)
    except ApiError as error:
        raise invalid("quote_id", error.message, "quote_not_found") from None
    if quote.status is not QuoteStatus.READY:
        what = "is still being computed" if quote.status is QuoteStatus.COMPUTING else "failed; see its errors"
        raise invalid("quote_id", f"The quote {quote_id} {what}.", "quote_not_ready")
    if quote.expires_at <= session.execute(select(func.now())).scalar_one():
        raise invalid("quote_id", f"The quote {quote_id} has expired. Ask for a new one.", "quote_expired")
    quoted = {
        "input_file_id": (quote.input_file_id, body.input_file_id),
        "endpoint": (quote.endpoint, body.endpoint),
        "on_invalid": (quote.on_invalid, on_invalid),
        "service_class": (quote.service_class, service_class),
    }
    for name, (of_quote, of_batch) in quoted.items():
        if of_quote != of_batch:
            raise invalid(
                "quote_id",
                f"The quote {quote_id} is for another batch: its '{name}' is {str(of_quote)!r}, not {str(of_batch)!r}.",
                "quote_mismatch",
            )
    return quote
