"""Preparing a batch: intake and planning in one transaction, so that it is validating, or all there, or failed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy import Connection, Engine, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as insert_unless_there
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from pipeline.billing.budgets import limit_batch
from pipeline.billing.cards_in_effect import find_rates
from pipeline.billing.rating import NotPricedError
from pipeline.billing.revisions import revisions_of
from pipeline.errors import PipelineError
from pipeline.ids import new_file_id
from pipeline.jobs import outbox
from pipeline.jobs.intake import IntakeReport, intake
from pipeline.jobs.intake_table import INTAKE_TABLE, InvalidLine, write_errors
from pipeline.jobs.partitioning import make_partitions
from pipeline.jobs.planning import plan
from pipeline.settings import Settings, get_settings
from pipeline.storage import BlobNotFoundError, StorageError, open_blob
from pipeline.tables import Batch, BatchError, BatchStatus, File, FileView, ServedModel
from pipeline.tables.session import connection, get_engine
from pipeline.telemetry import genai_names as names
from pipeline.telemetry import tracing
from pipeline.telemetry.logs import summarize_error
from pipeline.tenancy.queue_limits import QueueLimitError, reserve_tokens
from pipeline.webhooks.events import add_event

log = structlog.get_logger(__name__)

#: Batches prepared at once in one process; preparing is work for the processor, and a sweep must find a free thread.
_MAX_AT_ONCE: Final = 2
#: A batch that could not be prepared so often fails. With the pauses below that is after about ten minutes.
MAX_PREPARATIONS: Final = 8
_LONGEST_PAUSE_SECONDS: Final = 300.0

#: Of a batch's advisory lock, beside the hash of its id.
_LOCK_CLASS: Final = 1

_slots = threading.BoundedSemaphore(_MAX_AT_ONCE)

_DUE = (Batch.status == BatchStatus.VALIDATING) & (func.coalesce(Batch.prepare_after, func.now()) <= func.now())


class _OvertakenError(PipelineError):
    """The batch was cancelled while it was being prepared."""


class _DeadlyBatchError(PipelineError):
    """The processes that prepared the batch ended before they were done."""


def prepare_waiting(engine: Engine | None = None) -> int:
    """Prepare every batch that waits for it, oldest first; returns how many were.

    If this process is busy with as many as it may, this returns at once: whoever is at work looks again when done.
    """
    engine = engine or get_engine()
    num_prepared = 0
    # Looked at again after the slot is free: a message that came while it was taken has been dropped.
    while _is_any_due(engine) and _slots.acquire(blocking=False):
        try:
            num_now = sum(prepare(batch_id, engine) is not None for batch_id in _due(engine))
        finally:
            _slots.release()
        if num_now == 0:
            break  # the others are in the hands of other processes
        num_prepared += num_now
    return num_prepared


def prepare(batch_id: str, engine: Engine | None = None) -> BatchStatus | None:
    """Prepare one batch: it is then `in_progress` or `failed`, which is returned.

    None: there was nothing to do, because it is not validating (any more) or another is at it; or preparing it went
    wrong, which is tried again a few times, with pauses, before the batch fails with `internal_error`.
    """
    engine = engine or get_engine()
    settings = get_settings()
    num_preparations, tenant_id = 0, None
    try:
        make_partitions(engine, months_ahead=0)  # where nobody has for months, they are made now
        with engine.connect() as conn, conn.begin():
            if not try_lock(conn, batch_id):
                return None
            with Session(conn) as session:
                batch = session.scalars(select(Batch).where(Batch.id == batch_id, _DUE)).one_or_none()
            if batch is None:
                return None
            tenant_id = batch.tenant_id
            storage_key = conn.scalar(select(File.storage_key).where(File.id == batch.input_file_id))
            num_preparations = _count_preparation(engine, batch_id, settings)
            if num_preparations > MAX_PREPARATIONS:
                raise _DeadlyBatchError
            # Line by line it may well take longer than a statement of anyone else should.
            conn.execute(text("SET LOCAL statement_timeout = '15min'"))
            conn.execute(text("SET LOCAL idle_in_transaction_session_timeout = '15min'"))
            about = {names.TENANT: batch.tenant_id, names.BATCH: batch_id}
            with tracing.span("batch.prepare", about, parent=batch.trace_context) as span:
                status = _prepare(conn, batch, storage_key, settings)
                span.set({names.BATCH_STATUS: status.value})
    except _OvertakenError:
        return None
    except Exception as error:  # a batch must not stay validating for ever, whatever goes wrong with it
        is_expected = isinstance(error, StorageError | DBAPIError | _DeadlyBatchError)
        log.error(
            "batch not prepared",
            tenant=tenant_id,
            batch=batch_id,
            preparation=num_preparations,
            reason=summarize_error(error),
            exc_info=None if is_expected else error,
        )
        if num_preparations < MAX_PREPARATIONS or (given_up := _give_up(engine, batch_id, error)) is None:
            return None
        status = given_up
    log.info("batch prepared", tenant=tenant_id, batch=batch_id, status=status.value)
    outbox.publish_soon(engine)
    return status


def try_lock(conn: Connection, batch_id: str) -> bool:
    """Keep others from preparing this batch until the end of the transaction; False if another is at it."""
    return bool(conn.scalar(select(func.pg_try_advisory_xact_lock(_LOCK_CLASS, func.hashtext(batch_id)))))


def _prepare(conn: Connection, batch: Batch, storage_key: str | None, settings: Settings) -> BatchStatus:
    if storage_key is None:
        raise BlobNotFoundError("The input file has no content: it is the output of another batch.")
    with open_blob(storage_key) as blob, tracing.span("batch.intake") as span:
        report = intake(conn, batch, blob, settings)
        span.set({names.NUM_REQUESTS: report.num_requests, names.REQUEST_MODEL: report.model})
    if report.is_accepted and report.model is not None and _reserve(conn, batch, report.model):
        with tracing.span("batch.plan"):
            plan(conn, batch, report.model, settings)
        _limit(conn, batch, report.model)
        _begin(conn, batch, report)
        return BatchStatus.IN_PROGRESS
    if not _refuse(conn, batch.id):
        raise _OvertakenError
    return BatchStatus.FAILED


def _reserve(conn: Connection, batch: Batch, model: str) -> bool:
    """Count its prompt tokens against the tenant's limit; False, with the reason among its errors, if they are many."""
    num_tokens = conn.scalar(text(f"SELECT sum(num_prompt_tokens)::bigint FROM {INTAKE_TABLE}"))  # noqa: S608
    try:
        reserve_tokens(conn.engine, batch.id, batch.tenant_id, model, num_tokens or 0)
    except QueueLimitError as error:
        write_errors(conn, batch.id, [InvalidLine(0, None, error.code, None, str(error))])
        return False
    return True


def _limit(conn: Connection, batch: Batch, model: str) -> None:
    """In the currency of its prices, which are known as soon as its model is."""
    if batch.max_cost is None:
        return
    rates = find_rates(
        conn,
        tenant_id=batch.tenant_id,
        model=model,
        service_class=batch.service_class,
        rate_card_id=batch.rate_card_id,
    )
    if rates is None:
        raise NotPricedError(f"Model {model!r} lost its price while the batch was prepared.")
    with Session(conn) as session:
        limit_batch(session, batch.tenant_id, batch.id, rates.currency, batch.max_cost)


def _begin(conn: Connection, batch: Batch, report: IntakeReport) -> None:
    files = {view: new_file_id() for view in FileView}
    conn.execute(
        insert(File),
        [
            {
                "id": file_id,
                "tenant_id": batch.tenant_id,
                "project_id": batch.project_id,
                "filename": f"{batch.id}_{view.value}.jsonl",
                "purpose": "batch_output",
                "num_bytes": 0,
                "batch_id": batch.id,
                "view": view,
            }
            for view, file_id in files.items()
        ],
    )
    begun = conn.execute(
        update(Batch)
        .where(Batch.id == batch.id, Batch.status == BatchStatus.VALIDATING)
        .values(
            status=BatchStatus.IN_PROGRESS,
            in_progress_at=func.clock_timestamp(),
            model=report.model,
            num_requests=report.num_requests,
            num_skipped=report.num_errors,
            output_file_id=files[FileView.OUTPUT],
            error_file_id=files[FileView.ERROR],
            **_revisions(conn, batch, report.model),
        )
    )
    if begun.rowcount == 0:
        raise _OvertakenError


def _revisions(conn: Connection, batch: Batch, model: str | None) -> dict[str, str]:
    """Of a batch with receipts: what its model and its tokenizer are now."""
    if not batch.has_receipts:
        return {}
    folder = conn.execute(select(ServedModel.path).where(ServedModel.name == model)).scalar_one()
    revisions = revisions_of(Path(folder))
    return {"model_revision": revisions.model, "tokenizer_revision": revisions.tokenizer}


def _refuse(conn: Connection, batch_id: str) -> bool:
    """False if the batch was cancelled first."""
    refused = conn.execute(
        update(Batch)
        .where(Batch.id == batch_id, Batch.status == BatchStatus.VALIDATING)
        .values(status=BatchStatus.FAILED, failed_at=func.clock_timestamp())
    )
    if refused.rowcount == 0:
        return False
    add_event(conn, batch_id, BatchStatus.FAILED)
    return True


def _give_up(engine: Engine, batch_id: str, error: Exception) -> BatchStatus | None:
    # The log has the error itself; its text may name what is none of a tenant's business.
    what = "The input file could not be read" if isinstance(error, StorageError) else "The batch could not be prepared"
    message = f"{what}, in {MAX_PREPARATIONS} tries. This is no fault of the file: tell the operator, then try again."
    with connection(engine) as conn:
        conn.execute(
            insert_unless_there(BatchError)
            .values(batch_id=batch_id, line=0, code="internal_error", message=message)
            .on_conflict_do_nothing()
        )
        return BatchStatus.FAILED if _refuse(conn, batch_id) else None


def _count_preparation(engine: Engine, batch_id: str, settings: Settings) -> int:
    """In a transaction of its own, so that it stays counted if this process does not live to see the end of it."""
    pause = func.least(settings.sweep_seconds * func.power(2, Batch.num_preparations), _LONGEST_PAUSE_SECONDS)
    with connection(engine) as conn:
        return conn.execute(
            update(Batch)
            .where(Batch.id == batch_id)
            .values(
                num_preparations=Batch.num_preparations + 1,
                prepare_after=func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, pause),
            )
            .returning(Batch.num_preparations)
        ).scalar_one()


def _is_any_due(engine: Engine) -> bool:
    return bool(_due(engine, limit=1))


def _due(engine: Engine, limit: int = 100) -> list[str]:
    with connection(engine) as conn:
        return list(conn.scalars(select(Batch.id).where(_DUE).order_by(Batch.created_at).limit(limit)))
