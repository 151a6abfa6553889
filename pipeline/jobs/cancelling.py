"""Cancelling a batch: waiting requests at once, running ones as soon as their group hears of it."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from pipeline.celery import CANCEL, CONTROL_QUEUE
from pipeline.errors import PipelineError
from pipeline.jobs import outbox
from pipeline.jobs.ending import end_waiting_requests
from pipeline.tables import Batch, BatchStatus, OutcomeKind
from pipeline.tables.session import transaction
from pipeline.tenancy.scopes import is_in_project

_CANCELLABLE: Final = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)
_CANCELLED: Final = (BatchStatus.CANCELLING, BatchStatus.CANCELLED)


class BatchNotFoundError(PipelineError):
    """The tenant, or the project, has no such batch."""


class BatchNotCancellableError(PipelineError):
    """The batch has ended, so that nothing is left to cancel."""

    def __init__(self, batch_id: str, status: BatchStatus) -> None:
        super().__init__(f"Cannot cancel a batch with status '{status.value}'.")
        self.batch_id = batch_id
        self.status = status


def cancel_batch(session: Session, batch_id: str, tenant_id: str, *, project_id: str | None = None) -> Batch:
    """Begin to cancel a batch; what it has finished is kept and billed. Call `outbox.publish_soon` after the commit.

    A batch that is cancelling or cancelled is returned as it is. Raises BatchNotFoundError, BatchNotCancellableError.
    """
    batch = session.scalars(
        select(Batch)
        .where(Batch.id == batch_id, is_in_project(Batch, tenant_id, project_id))
        .with_for_update(key_share=True)
    ).one_or_none()
    if batch is None:
        raise BatchNotFoundError
    if batch.status in _CANCELLED:
        return batch
    if batch.status not in _CANCELLABLE:
        raise BatchNotCancellableError(batch.id, batch.status)
    batch.status = BatchStatus.CANCELLING
    batch.cancelling_at = func.now()
    session.flush()
    outbox.add(session, queue=CONTROL_QUEUE, task=CANCEL, args=[batch.id])
    session.refresh(batch)
    return batch


def end_cancelled(batch_id: str, engine: Engine | None = None) -> int:
    """Give the waiting requests of a batch that is cancelling their outcome; returns how many those were.

    A batch that preparing has not reached has none, and is closed at once.
    """
    with transaction(engine) as session:
        status = session.scalar(select(Batch.status).where(Batch.id == batch_id))
    if status is not BatchStatus.CANCELLING:
        return 0
    return end_waiting_requests(batch_id, OutcomeKind.CANCELLED, engine)
