"""`/v1/batches`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Depends, Header, Query, Request
from pydantic import WithJsonSchema
from sqlalchemy import select
from sqlalchemy.orm import Session

from pipeline.errors import UserError
from pipeline.gateway.auth import BatchesReader, BatchesWriter
from pipeline.gateway.errors import ApiError, conflict, invalid
from pipeline.gateway.idempotency import IdempotencyKey, keyed_call
from pipeline.gateway.input_files import batch_input_file
from pipeline.gateway.quotes import agreed_quote
from pipeline.gateway.rate_limits import count_submission
from pipeline.ids import new_id
from pipeline.jobs import outbox
from pipeline.jobs.cancelling import BatchNotCancellableError, BatchNotFoundError, cancel_batch
from pipeline.jobs.idempotency import answer_once, claim_key
from pipeline.jobs.submission import submit_batch
from pipeline.paging import read_page
from pipeline.schemas.batches import BatchCreate, BatchObject
from pipeline.schemas.lists import ListPage
from pipeline.settings import get_settings
from pipeline.signing import signing_key
from pipeline.tables import Batch, BatchError, BatchStatus, OnInvalid, ServiceClass
from pipeline.tables.session import transaction
from pipeline.tenancy.keys import Principal, check_still_valid
from pipeline.tenancy.queue_limits import admit_batch
from pipeline.tenancy.scopes import is_in_project

log = structlog.get_logger(__name__)

router = APIRouter(prefix="/v1/batches", tags=["batches"])

#: Errors of a failed batch that a list shows; `GET /v1/batches/{batch_id}` shows all of them.
_LISTED_ERRORS = 100

#: What the functions below take, as a description has it; they check it by themselves, for the sake of their messages.
_ON_INVALID_SCHEMA: dict[str, Any] = {"anyOf": [{"type": "string", "enum": list(OnInvalid)}, {"type": "null"}]}


def _on_invalid_header(
    on_invalid: Annotated[str | None, Header(alias="on-invalid"), WithJsonSchema(_ON_INVALID_SCHEMA)] = None,
    x_on_invalid: Annotated[str | None, Header(alias="x-on-invalid"), WithJsonSchema(_ON_INVALID_SCHEMA)] = None,
) -> OnInvalid | None:
    """The extension as a header, for clients that can't put it into the body."""
    given = on_invalid if on_invalid is not None else x_on_invalid
    if given is None:
        return None
    if given not in set(OnInvalid):
        raise invalid("on_invalid", f"Invalid 'on_invalid': {given[:32]!r} is not one of {', '.join(OnInvalid)}.")
    return OnInvalid(given)


@router.post("")
def create_batch(
    request: Request,
    caller: BatchesWriter,
    body: BatchCreate,
    header: Annotated[OnInvalid | None, Depends(_on_invalid_header)],
    idempotency_key: IdempotencyKey = None,
) -> BatchObject:
    """Start a batch; its input file is checked line by line while it is `validating`.

    With an `Idempotency-Key`, sending the same again gives the same batch, as it is by then.
    """
    on_invalid = body.on_invalid or header or OnInvalid.FAIL
    service_class = body.service_class or ServiceClass.STANDARD
    expires_after = body.output_expires_after
    has_receipts = _gives_receipts(body.receipts)
    batch_id = new_id("batch")
    with transaction() as session:
        if idempotency_key is not None:
            # Without what is not given: a version that knows more parameters finds the same content the same.
            content = {**body.model_dump(mode="json", exclude_none=True), "on_invalid": on_invalid.value}
            first_id = claim_key(session, caller.tenant_id, caller.project_id, idempotency_key, content, batch_id)
            if first_id != batch_id:
                return _read(session, caller, first_id)
        admit_batch(session, caller.tenant_id)
        quote = None if body.quote_id is None else agreed_quote(session, caller, body, on_invalid, service_class)
        input_file = batch_input_file(session, caller, body.input_file_id)
        count_submission(request, caller, input_file.num_bytes)
        batch = submit_batch(
            session,
            tenant_id=caller.tenant_id,
            api_key_id=caller.api_key_id,
            project_id=caller.project_id,
            input_file=input_file,
            endpoint=body.endpoint,
            completion_window=body.completion_window,
            service_class=service_class,
            metadata=body.metadata,
            on_invalid=on_invalid,
            output_expires_after_seconds=None if expires_after is None else expires_after.seconds,
            has_receipts=has_receipts,
            quote=quote,
            max_cost=body.max_cost,
            batch_id=batch_id,
        )
        check_still_valid(session, caller)
    outbox.publish_soon()
    return BatchObject.of(batch)


def _gives_receipts(wanted: bool | None) -> bool:
    """As the batch says, else as the settings do. Nothing can be promised that can't be signed."""
    has_receipts = get_settings().receipts if wanted is None else wanted
    if has_receipts:
        try:
            signing_key()
        except UserError as error:
            log.error("receipts can't be signed", reason=str(error))
            if wanted:
                message = "This service can't sign receipts at the moment. Leave 'receipts' out, or tell the operator."
                raise invalid("receipts", message) from None
            return False
    return has_receipts


@router.get("")
def list_batches(
    caller: BatchesReader, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> ListPage[BatchObject]:
    """The caller's batches, the newest first. Of a failed batch's errors the first 100 are shown."""
    with transaction() as session:
        page = read_page(session, Batch, caller.tenant_id, project_id=caller.project_id, after=after, limit=limit)
        return ListPage(
            data=[BatchObject.of(batch, _errors(session, batch, _LISTED_ERRORS)) for batch in page.rows],
            first_id=page.first_id,
            last_id=page.last_id,
            has_more=page.has_more,
        )


@router.get("/{batch_id}")
def retrieve_batch(caller: BatchesReader, batch_id: str) -> BatchObject:
    with transaction() as session:
        return _read(session, caller, batch_id)


def _read(session: Session, caller: Principal, batch_id: str) -> BatchObject:
    query = select(Batch).where(is_in_project(Batch, caller.tenant_id, caller.project_id), Batch.id == batch_id)
    batch = session.execute(query).scalar_one_or_none()
    if batch is None:
        raise _not_found(batch_id)
    return BatchObject.of(batch, _errors(session, batch))


@router.post("/{batch_id}/cancel", operation_id="cancel_batch")
def request_cancel(caller: BatchesWriter, batch_id: str, idempotency_key: IdempotencyKey = None) -> BatchObject:
    """Stop a batch; what is finished is kept. 409 for one that has ended; again is fine."""
    call = keyed_call(caller, "cancel_batch", idempotency_key, {"batch_id": batch_id})

    def cancel() -> BatchObject:
        batch = cancel_batch(session, batch_id, caller.tenant_id, project_id=caller.project_id)
        check_still_valid(session, caller)
        return BatchObject.of(batch)

    try:
        with transaction() as session:
            batch = answer_once(session, call, cancel, BatchObject)
    except BatchNotFoundError:
        raise _not_found(batch_id) from None
    except BatchNotCancellableError as error:
        raise conflict(str(error), param="batch_id", code="batch_not_cancellable") from None
    outbox.publish_soon()
    return batch


def _errors(session: Session, batch: Batch, limit: int | None = None) -> Sequence[BatchError]:
    if batch.status is not BatchStatus.FAILED:
        return ()
    query = select(BatchError).where(BatchError.batch_id == batch.id).order_by(BatchError.line)
    return session.execute(query.limit(limit)).scalars().all()


def _not_found(batch_id: str) -> ApiError:
    return ApiError(404, f"No batch found with id '{batch_id[:128]}'.", param="batch_id", code="batch_not_found")
