"""`/v1/batches/{batch_id}/pause`, `/resume` and `/retry`: extensions, named and answered as `/cancel` is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastapi import APIRouter, Request
from sqlalchemy.orm import Session

from pipeline.gateway.auth import BatchesWriter
from pipeline.gateway.errors import ApiError, conflict
from pipeline.gateway.idempotency import IdempotencyKey, keyed_call
from pipeline.gateway.rate_limits import count_submission
from pipeline.jobs import outbox
from pipeline.jobs.cancelling import BatchNotFoundError
from pipeline.jobs.client_pauses import BatchNotPausableError, PausedByBudgetError, pause_batch, resume_batch
from pipeline.jobs.idempotency import KeyedCall, answer_once, first_answer
from pipeline.jobs.retrying import BatchNotRetryableError, RetriedInput, find_retryable, retry_batch
from pipeline.schemas.batches import BatchObject, BatchPause
from pipeline.tables import Batch
from pipeline.tables.session import transaction
from pipeline.tenancy.keys import Principal, check_still_valid
from pipeline.tenancy.queue_limits import admit_batch

router = APIRouter(prefix="/v1/batches", tags=["batches"])


@router.post("/{batch_id}/pause", operation_id="pause_batch")
def request_pause(
    caller: BatchesWriter, batch_id: str, body: BatchPause | None = None, idempotency_key: IdempotencyKey = None
) -> BatchObject:
    """Begin no more of a batch until it is resumed; its window stands still. What runs goes on to its end.

    409 for one that has ended; again is fine.
    """
    note = None if body is None else body.reason
    call = keyed_call(caller, "pause_batch", idempotency_key, {"batch_id": batch_id, "reason": note})

    def pause(session: Session) -> Batch:
        return pause_batch(session, batch_id, caller.tenant_id, project_id=caller.project_id, note=note)

    return _act(caller, batch_id, call, pause)


@router.post("/{batch_id}/resume", operation_id="resume_batch")
def request_resume(caller: BatchesWriter, batch_id: str, idempotency_key: IdempotencyKey = None) -> BatchObject:
    """Let a paused batch go on. 409 for one that has ended, or that waits for a budget; again is fine."""
    call = keyed_call(caller, "resume_batch", idempotency_key, {"batch_id": batch_id})

    def resume(session: Session) -> Batch:
        return resume_batch(session, batch_id, caller.tenant_id, project_id=caller.project_id)

    return _act(caller, batch_id, call, resume)


@router.post("/{batch_id}/retry", operation_id="retry_batch")
def request_retry(
    request: Request, caller: BatchesWriter, batch_id: str, idempotency_key: IdempotencyKey = None
) -> BatchObject:
    """A new batch of those requests of an ended one that failed, were cancelled or expired.

    Its input is a new file of exactly their lines; all else is as it was, and `retried_from` in its metadata names the
    first one, unless 16 pairs of its own fill that. 409 where there is nothing to retry. With an `Idempotency-Key`,
    sending it again makes no second one.
    """
    call = keyed_call(caller, "retry_batch", idempotency_key, {"batch_id": batch_id})
    with _explained(batch_id), transaction() as session:
        if (answer := first_answer(session, call, BatchObject)) is not None:
            return answer
        lines = find_retryable(session, batch_id, caller.tenant_id, project_id=caller.project_id)
        admit_batch(session, caller.tenant_id)  # before anything is copied; what counts is the one below
    retried = RetriedInput(lines)

    def retry(session: Session) -> Batch:
        admit_batch(session, caller.tenant_id)
        return retry_batch(
            session,
            batch_id,
            caller.tenant_id,
            retried,
            project_id=caller.project_id,
            api_key_id=caller.api_key_id,
        )

    try:
        with _explained(batch_id):
            retried.copy()
        count_submission(request, caller, retried.num_bytes)
        return _act(caller, batch_id, call, retry, retried.mark_recorded)
    finally:
        retried.discard_unless_recorded()


def _act(
    caller: Principal,
    batch_id: str,
    call: KeyedCall | None,
    act: Callable[[Session], Batch],
    before_commit: Callable[[], None] = lambda: None,
) -> BatchObject:
    """The batch that `act` gives, in one transaction with its answer."""

    def make() -> BatchObject:
        batch = act(session)
        check_still_valid(session, caller)
        return BatchObject.of(batch)

    with _explained(batch_id):
        with transaction() as session:
            answer = answer_once(session, call, make, BatchObject)
            before_commit()
        outbox.publish_soon()
        return answer


@contextmanager
def _explained(batch_id: str) -> Iterator[None]:
    try:
        yield
    except BatchNotFoundError:
        raise ApiError(
            404, f"No batch found with id '{batch_id[:128]}'.", param="batch_id", code="batch_not_found"
        ) from None
    except BatchNotPausableError as error:
        raise conflict(str(error), param="batch_id", code="batch_not_pausable") from None
    except PausedByBudgetError as error:
        raise conflict(str(error), param="batch_id", code="batch_paused_by_budget") from None
    except BatchNotRetryableError as error:
        raise conflict(str(error), param="batch_id", code="batch_not_retryable") from None
