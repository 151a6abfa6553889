"""Closing a batch of which every request has an outcome."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any, Final

import structlog
from sqlalchemy import Engine, exists, func, select, update
from sqlalchemy.orm import Session

from pipeline.billing.missed_windows import credit_missed_window
from pipeline.jobs import outbox
from pipeline.jobs.lines import view_num_bytes
from pipeline.tables import Batch, BatchStatus, File, FileView, OutcomeKind, Request
from pipeline.tables.session import transaction
from pipeline.telemetry import genai_names as names
from pipeline.telemetry import tracing
from pipeline.webhooks.events import add_event

log = structlog.get_logger(__name__)

_OPEN: Final = (BatchStatus.IN_PROGRESS, BatchStatus.CANCELLING, BatchStatus.FINALIZING)

#: The moment that says when a batch got a status.
_MOMENTS: Final = {
    BatchStatus.COMPLETED: "completed_at",
    BatchStatus.CANCELLED: "cancelled_at",
    BatchStatus.EXPIRED: "expired_at",
}


def finalize(batch_id: str, engine: Engine | None = None) -> BatchStatus | None:
    """Give a batch its final status and its files their sizes, if all of its requests have an outcome.

    Safe at any time and from any number of callers: the row is locked, and who finds it closed leaves it so.
    Returns the final status if this call closed it.
    """
    began_ns = time.time_ns()
    with transaction(engine) as session:
        batch = session.scalars(select(Batch).where(Batch.id == batch_id).with_for_update(key_share=True)).one_or_none()
        if batch is None or batch.status not in _OPEN or batch.num_unfinished > 0:
            return None
        tenant_id, trace_context = batch.tenant_id, batch.trace_context
        status = _final_status(session, batch)
        if status is not BatchStatus.CANCELLED:  # a cancelled batch goes from cancelling to cancelled, as OpenAI's
            batch.finalizing_at = func.now()
        _end_pause(batch)
        _close_files(session, batch)
        batch.status = status
        setattr(batch, _MOMENTS[status], func.clock_timestamp())
        session.flush()
        credits_given = credit_missed_window(session, batch_id)
        num_webhooks = add_event(session, batch_id, status)
    if num_webhooks:
        outbox.publish_soon(engine)
    about = {names.TENANT: tenant_id, names.BATCH: batch_id, names.BATCH_STATUS: status.value}
    tracing.start_span("batch.finalize", about, parent=trace_context, start_ns=began_ns).end()
    log.info("batch closed", tenant=tenant_id, batch=batch_id, status=status.value, credits=len(credits_given))
    return status


def _final_status(session: Session, batch: Batch) -> BatchStatus:
    if batch.cancelling_at is not None:
        return BatchStatus.CANCELLED
    if batch.num_unsuccessful > 0:
        expired = exists().where(Request.batch_id == batch.id, Request.outcome == OutcomeKind.EXPIRED)
        if session.scalar(select(expired)):
            return BatchStatus.EXPIRED
    return BatchStatus.COMPLETED


def _end_pause(batch: Batch) -> None:
    """Of a batch that was paused when groups had all that was left of it: its window stood still as of any other."""
    if batch.paused_at is not None:
        batch.expires_at = Batch.expires_at + (func.clock_timestamp() - Batch.paused_at)
        batch.pause_reason = batch.pause_note = batch.pause_needs = batch.paused_at = None


def _close_files(session: Session, batch: Batch) -> None:
    """Set the sizes of both files, and take away one that has nothing in it.

    A file counts as made when it is complete; its age starts there.
    """
    made: dict[str, Any] = {"created_at": func.now()}
    if batch.output_expires_after_seconds is not None:
        made["expires_at"] = func.now() + timedelta(seconds=batch.output_expires_after_seconds)
    files = session.scalars(select(File).where(File.batch_id == batch.id)).all()
    for file in files:
        assert file.view is not None
        num_bytes = view_num_bytes(session.connection(), batch.id, file.view)
        if num_bytes > 0:
            session.execute(update(File).where(File.id == file.id).values(num_bytes=num_bytes, **made))
            continue
        if file.view is FileView.OUTPUT:
            batch.output_file_id = None
        else:
            batch.error_file_id = None
        session.delete(file)
