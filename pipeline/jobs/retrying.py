"""Trying again what did not succeed: a new batch of those requests of an ended one that have no answer.

Its input is a new file of exactly their lines, to the letter and in their order, so that it is checked, planned,
priced and limited like any other. Lines that intake refused are left out: they would be refused again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from pipeline.schemas.batches import MAX_METADATA_PAIRS
from pipeline.schemas.files import BATCH_PURPOSE
from pipeline.settings import get_settings
from pipeline.tables import Batch, BatchStatus, DroppedBatch, File, OutcomeKind, Request
from pipeline.tenancy.scopes import is_in_project

log = structlog.get_logger(__name__)

#: Key in the metadata of the new batch, where there is room for one more: the id of the one that it tries again.
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


@dataclass(frozen=True, kw_only=True)
class RetriedLines:
    """What a retry tries again."""

    #: Id of the input file that they are lines of, and of its blob.
    source_id: str
    source_key: str
    #: Of the file that they become.
    filename: str
    #: Their numbers in the source, from 1, in order.
    numbers: Sequence[int]


class RetriedInput:
    """The new input file of one retry: a blob that is removed again where its row is not written."""

    def __init__(self, lines: RetriedLines) -> None:
        self.lines = lines
        self.file_id = new_file_id()
        self.num_bytes = 0
        self._is_written = False
        self._is_used = False
        self._is_recorded = False

    def copy(self) -> None:
        """Write the blob. It takes long, so it is for no transaction. Raises BatchNotRetryableError, StorageError."""
        self._is_written = True
        try:
            pieces = _pieces(self.lines.source_key, self.lines.numbers)
            self.num_bytes = storage.write_blob(upload_key(self.file_id), pieces)
        except storage.BlobNotFoundError:
            raise BatchNotRetryableError(
                f"The content of the input file {self.lines.source_id} is gone. Upload the requests again and create a "
                "new batch."
            ) from None

    def mark_used(self) -> None:
        """A batch has been written that reads it."""
        self._is_used = True

    def mark_recorded(self) -> None:
        """The commit is next. Where it has a batch that reads the blob, the blob stays, even if its answer is lost."""
        self._is_recorded = self._is_used

    def discard_unless_recorded(self) -> None:
        if self._is_written and not self._is_recorded:
            with contextlib.suppress(storage.StorageError):
                storage.delete_blob(upload_key(self.file_id))


def find_retryable(session: Session, batch_id: str, tenant_id: str, *, project_id: str | None = None) -> RetriedLines:
    """What of a batch that has ended can be tried again. Raises BatchNotFoundError, BatchNotRetryableError."""
    batch = _ended_batch(session, batch_id, tenant_id, project_id)
    numbers = _unanswered_lines(session, batch)
    source = session.get_one(File, batch.input_file_id)
    if source.deleted_at is not None or source.storage_key is None:
        raise BatchNotRetryableError(
            f"The input file {source.id} of this batch was deleted or has expired, and the requests with it. Upload "
            "them again and create a new batch."
        )
    return RetriedLines(source_id=source.id, source_key=source.storage_key, filename=_name_of(source), numbers=numbers)


def retry_batch(
    session: Session,
    batch_id: str,
    tenant_id: str,
    retried: RetriedInput,
    *,
    project_id: str | None = None,
    api_key_id: str,
) -> Batch:
    """Write the new batch, which reads `retried`, a copy of what `find_retryable` has found.

    Call `retried.mark_recorded` right before the commit, `outbox.publish_soon` after it, and
    `retried.discard_unless_recorded` at the very end. Raises BatchNotFoundError, BatchNotRetryableError.
    """
    first = _ended_batch(session, batch_id, tenant_id, project_id)
    input_file = record_upload(
        session,
        file_id=retried.file_id,
        tenant_id=first.tenant_id,
        project_id=first.project_id,
        filename=retried.lines.filename,
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
        metadata=_metadata_of(first),
        on_invalid=first.on_invalid,
        output_expires_after_seconds=first.output_expires_after_seconds,
        has_receipts=first.has_receipts,
        max_cost=first.max_cost,
    )
    retried.mark_used()
    log.info("batch retried", batch=first.id, by=batch.id, requests=len(retried.lines.numbers))
    return batch


def _ended_batch(session: Session, batch_id: str, tenant_id: str, project_id: str | None) -> Batch:
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


def _metadata_of(first: Batch) -> dict[str, str]:
    """The client's own pairs come first: where they fill the metadata, `retried_from` is left out."""
    own = first.metadata_ or {}
    has_room = RETRIED_FROM in own or len(own) < MAX_METADATA_PAIRS
    return {**own, RETRIED_FROM: first.id} if has_room else own


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
