"""Trying again what did not succeed: a new batch of those requests of an ended one that have no answer.

Its input is a new file of exactly their lines, to the letter and in their order, so that it is checked, planned,
priced and limited like any other. Lines that intake refused are left out: they would be refused again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Final

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from pipeline import storage
from pipeline.errors import PipelineError
from pipeline.files import record_upload, upload_key
from pipeline.ids import new_file_id
from pipeline.jobs.cancelling import BatchNotFoundError
from pipeline.jobs.input_lines import read_lines
from pipeline.jobs.submission import submit_batch
from pipeline.schemas.files import BATCH_PURPOSE
from pipeline.settings import get_settings
from pipeline.tables import Batch, BatchStatus, DroppedBatch, File, OutcomeKind, Request
from pipeline.tenancy.scopes import is_in_project

log = structlog.get_logger(__name__)

#: Key in the metadata of the new batch: the id of the one that it tries again.
RETRIED_FROM: Final = "retried_from"

_ENDED: Final = (BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED)
#: No outcome is null in a batch that has ended.
_UNANSWERED: Final = (OutcomeKind.FAILED, OutcomeKind.CANCELLED, OutcomeKind.EXPIRED)
#: Lines are written to blob storage in pieces of about so many bytes.
_PIECE_BYTES: Final = 1024**2
#: Longest name of a file that is kept.
_NAME_LENGTH: Final = 200


class BatchNotRetryableError(PipelineError):
    """There is nothing of the batch that could be tried again."""


class RetriedInput:
    """The new input file of one retry: a blob that is removed again where its row is not written."""

    def __init__(self) -> None:
        self.file_id = new_file_id()
        self.num_bytes = 0
        self._is_written = False
        self._is_recorded = False

    def write(self, source: File, lines: Sequence[int]) -> None:
        """Copy these lines of the input file `source`, by their numbers from 1. Raises StorageError."""
        assert source.storage_key is not None
        self._is_written = True
        self.num_bytes = storage.write_blob(upload_key(self.file_id), _pieces(source.storage_key, lines))

    def mark_recorded(self) -> None:
        """The commit is next, which may be done although its answer is lost: then the blob stays."""
        self._is_recorded = True

    def discard_unless_recorded(self) -> None:
        if self._is_written and not self._is_recorded:
            with contextlib.suppress(storage.StorageError):
                storage.delete_blob(upload_key(self.file_id))


def find_retryable(session: Session, batch_id: str, tenant_id: str, *, project_id: str | None = None) -> Batch:
    """A batch that has ended. Raises BatchNotFoundError, BatchNotRetryableError."""
    query = select(Batch).where(Batch.id == batch_id, is_in_project(Batch, tenant_id, project_id))
    batch = session.scalars(query).one_or_none()
    if batch is None:
        raise BatchNotFoundError
    if batch.status is BatchStatus.FAILED:
        raise BatchNotRetryableError(
            "None of its requests was run: the batch failed when its input file was checked, and 'errors' says why. "
            "Correct the file and create a new batch."
        )
    if batch.status not in _ENDED:
        raise BatchNotRetryableError(
            f"Cannot retry a batch with status '{batch.status.value}'. Wait until it has ended, or cancel it first."
        )
    return batch


def retry_batch(session: Session, first: Batch, retried: RetriedInput, *, api_key_id: str) -> Batch:
    """Write the new batch, whose blob is then `retried`; `first` is from `find_retryable`.

    Call `retried.mark_recorded` right before the commit, `outbox.publish_soon` after it, and
    `retried.discard_unless_recorded` after any error. Raises BatchNotRetryableError, StorageError.
    """
    lines = _unanswered_lines(session, first)
    source = session.get_one(File, first.input_file_id)
    if source.deleted_at is not None or source.storage_key is None:
        raise BatchNotRetryableError(
            f"The input file {source.id} of this batch was deleted or has expired, and the requests with it. Upload "
            "them again and create a new batch."
        )
    try:
        retried.write(source, lines)
    except storage.BlobNotFoundError:
        raise BatchNotRetryableError(
            f"The content of the input file {source.id} is gone. Upload the requests again and create a new batch."
        ) from None
    input_file = record_upload(
        session,
        file_id=retried.file_id,
        tenant_id=first.tenant_id,
        project_id=first.project_id,
        filename=_name_of(source),
        purpose=BATCH_PURPOSE,
        num_bytes=retried.num_bytes,
        expires_after_seconds=get_settings().file_expiry_seconds,
    )
    batch = submit_batch(
        session,
        tenant_id=first.tenant_id,
        api_key_id=api_key_id,
        project_id=first.project_id,
        service_class=first.service_class,
        input_file=input_file,
        endpoint=first.endpoint,
        completion_window=first.completion_window,
        metadata={**(first.metadata_ or {}), RETRIED_FROM: first.id},
        on_invalid=first.on_invalid,
        output_expires_after_seconds=first.output_expires_after_seconds,
        has_receipts=first.has_receipts,
        max_cost=first.max_cost,
    )
    log.info("batch retried", batch=first.id, by=batch.id, requests=len(lines))
    return batch


def _unanswered_lines(session: Session, batch: Batch) -> Sequence[int]:
    """Numbers of the input lines of requests that did not succeed, in order. Raises BatchNotRetryableError."""
    if session.get(DroppedBatch, batch.id) is not None:
        raise BatchNotRetryableError(
            "The requests of this batch are no longer kept. Upload them again and create a new batch."
        )
    query = select(Request.line).where(Request.batch_id == batch.id, Request.outcome.in_(_UNANSWERED))
    lines = session.scalars(query.order_by(Request.line)).all()
    if not lines:
        message = "Every request of this batch has succeeded: there is nothing to retry."
        if batch.num_skipped:
            message += f" Lines that were skipped as invalid, and have to be corrected first: {batch.num_skipped}."
        raise BatchNotRetryableError(message)
    return lines


def _pieces(key: str, lines: Sequence[int]) -> Iterator[bytes]:
    """These lines of a blob, each with its newline. They were accepted, so no limit holds for them any more."""
    wanted = iter(lines)
    number, piece = next(wanted), bytearray()
    with storage.open_blob(key) as blob:
        for line in read_lines(blob, max_line_bytes=2**62, max_file_bytes=2**62):
            if line.number != number:
                continue
            piece += (line.data or b"").rstrip(b"\r") + b"\n"
            if len(piece) >= _PIECE_BYTES:
                yield bytes(piece)
                piece.clear()
            if (following := next(wanted, None)) is None:
                break
            number = following
    yield bytes(piece)


def _name_of(source: File) -> str:
    """`requests.jsonl` gives `requests_retry.jsonl`."""
    stem, dot, suffix = source.filename.rpartition(".")
    stem = (stem if dot else source.filename).removesuffix("_retry")[:_NAME_LENGTH]
    return f"{stem}_retry{dot}{suffix if dot else ''}"
