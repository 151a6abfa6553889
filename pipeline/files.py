"""A tenant's files: rows over blobs (uploads) and over the outcomes of batches (output and error files)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from sqlalchemy import ColumnElement, exists, func, or_, select
from sqlalchemy.orm import Session

from pipeline import storage
from pipeline.errors import PipelineError
from pipeline.jobs.lines import stream_view
from pipeline.paging import Page, read_page
from pipeline.tables import Batch, BatchStatus, DroppedBatch, File
from pipeline.tenancy.keys import Principal, check_still_valid
from pipeline.tenancy.scopes import is_in_project
from pipeline.tenancy.tenants import default_project_id


class FileNotFoundForTenantError(PipelineError):
    """The tenant has no such file: it never had, or the file was deleted or has expired."""


class FileDroppedError(PipelineError):
    """The file shows outcomes of a batch that are no longer kept."""


class FileInUseError(PipelineError):
    """A batch has not read the file yet."""


def upload_key(file_id: str) -> str:
    """Where the blob of an upload is kept."""
    return f"uploads/{file_id}"


def record_upload(
    session: Session,
    *,
    file_id: str,
    tenant_id: str,
    project_id: str | None = None,
    filename: str,
    purpose: str,
    num_bytes: int,
    expires_after_seconds: int | None,
) -> File:
    """The row of an upload whose blob has been written. Age is counted by the database's clock; None never expires."""
    file = File(
        id=file_id,
        tenant_id=tenant_id,
        project_id=project_id or default_project_id(tenant_id),
        filename=filename,
        purpose=purpose,
        num_bytes=num_bytes,
        storage_key=upload_key(file_id),
        expires_at=None if expires_after_seconds is None else func.now() + timedelta(seconds=expires_after_seconds),
    )
    session.add(file)
    session.flush()
    session.refresh(file)
    return file


def find_file(
    session: Session, tenant_id: str, file_id: str, *, project_id: str | None = None, lock: bool = False
) -> File:
    """A file of this tenant, or of this project of it. Raises FileNotFoundForTenantError.

    With `lock` it can't be deleted before this transaction ends, in which a batch may therefore refer to it.
    """
    query = select(File).where(is_in_project(File, tenant_id, project_id), File.id == file_id, _is_live())
    if lock:
        query = query.with_for_update(read=True, key_share=True)
    file = session.execute(query).scalar_one_or_none()
    if file is None:
        raise FileNotFoundForTenantError
    return file


def list_files(
    session: Session,
    tenant_id: str,
    *,
    project_id: str | None = None,
    purpose: str | None,
    after: str | None,
    limit: int,
    newest_first: bool,
) -> Page[File]:
    """A page of the files of a tenant, or of a project of it. Raises UnknownCursorError."""
    conditions = [_is_live()]
    if purpose is not None:
        conditions.append(File.purpose == purpose)
    return read_page(
        session,
        File,
        tenant_id,
        *conditions,
        project_id=project_id,
        after=after,
        limit=limit,
        newest_first=newest_first,
    )


def delete_file(session: Session, caller: Principal, file_id: str) -> None:
    """Delete a file and its blob; the lines behind an output or error file stay with their batch.

    The blob goes first: if the commit then fails, deleting again finishes the work, and nothing is left over in secret.
    Raises InvalidKeyError, FileNotFoundForTenantError, FileInUseError, StorageError.
    """
    is_theirs = is_in_project(File, caller.tenant_id, caller.project_id)
    file = session.execute(
        select(File).where(is_theirs, File.id == file_id, _is_live()).with_for_update()
    ).scalar_one_or_none()
    check_still_valid(session, caller)  # what is gone with the blob comes back with no transaction
    if file is None:
        raise FileNotFoundForTenantError
    is_unread = Batch.status == BatchStatus.VALIDATING
    if session.execute(select(exists().where(Batch.input_file_id == file_id, is_unread))).scalar_one():
        raise FileInUseError
    if file.storage_key is not None:
        storage.delete_blob(file.storage_key)
    file.deleted_at = session.execute(select(func.now())).scalar_one()
    session.flush()


def check_is_kept(session: Session, file: File) -> None:
    """Raises FileDroppedError for a file over outcomes that retention has dropped."""
    if file.batch_id is not None and session.get(DroppedBatch, file.batch_id) is not None:
        raise FileDroppedError


def read_content(file: File) -> Iterator[bytes]:
    """The bytes of a file, in bounded pieces."""
    if file.storage_key is not None:
        return storage.stream_blob(file.storage_key)
    assert file.batch_id is not None
    assert file.view is not None
    return stream_view(file.batch_id, file.view)


def _is_live() -> ColumnElement[bool]:
    return File.deleted_at.is_(None) & or_(File.expires_at.is_(None), File.expires_at > func.now())
