"""`/v1/files`: uploads, and the output and error files of batches."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Literal
from urllib.parse import quote

import structlog
from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from pipeline import storage
from pipeline.files import (
    FileDroppedError,
    FileInUseError,
    FileNotFoundForTenantError,
    check_is_kept,
    delete_file,
    find_file,
    list_files,
    read_content,
    record_upload,
    upload_key,
)
from pipeline.gateway.auth import FilesReader, FilesWriter
from pipeline.gateway.errors import ApiError, conflict
from pipeline.gateway.idempotency import IdempotencyKey, keyed_call
from pipeline.gateway.uploads import Upload, receive_upload
from pipeline.ids import new_file_id
from pipeline.jobs.idempotency import KeyedCall, answer_once
from pipeline.schemas.files import (
    BATCH_PURPOSE,
    MAX_EXPIRY_SECONDS,
    MIN_EXPIRY_SECONDS,
    UPLOAD_PURPOSES,
    FileDeleted,
    FileObject,
)
from pipeline.schemas.lists import ListPage
from pipeline.settings import get_settings
from pipeline.tables import File
from pipeline.tables.session import transaction
from pipeline.tenancy.keys import Principal, check_still_valid

log = structlog.get_logger(__name__)

router = APIRouter(prefix="/v1/files", tags=["files"])

_UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "additionalProperties": False,
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(UPLOAD_PURPOSES)},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": MIN_EXPIRY_SECONDS,
                            "maximum": MAX_EXPIRY_SECONDS,
                        },
                    },
                }
            }
        },
    }
}


@router.post("", openapi_extra=_UPLOAD_BODY)
async def create_file(request: Request, caller: FilesWriter, idempotency_key: IdempotencyKey = None) -> FileObject:
    """Upload a file. The one route that reads its body itself, because it must not be held in memory.

    With an `Idempotency-Key`, sending the same again gives the same file.
    """
    file_id = new_file_id()
    digest = None if idempotency_key is None else hashlib.sha256()
    upload = await receive_upload(request, upload_key(file_id), get_settings(), digest)
    content = {} if digest is None else {**asdict(upload), "sha256": digest.hexdigest()}
    call = keyed_call(caller, "create_file", idempotency_key, content)
    return await run_in_threadpool(record_received, file_id, caller, upload, call)


def record_received(file_id: str, caller: Principal, upload: Upload, call: KeyedCall | None = None) -> FileObject:
    """Write the row, or remove the blob: neither is there without the other."""
    expires_after = upload.expires_after_seconds
    if expires_after is None and upload.purpose == BATCH_PURPOSE:
        expires_after = get_settings().file_expiry_seconds
    is_written = False

    def record() -> FileObject:
        file = record_upload(
            session,
            file_id=file_id,
            tenant_id=caller.tenant_id,
            project_id=caller.project_id,
            filename=upload.filename,
            purpose=upload.purpose,
            num_bytes=upload.num_bytes,
            expires_after_seconds=expires_after,
        )
        check_still_valid(session, caller)
        return FileObject.of(file)

    try:
        with transaction() as session:
            file = answer_once(session, call, record, FileObject)
            is_written = file.id == file_id
    except Exception:
        # Once the row is written, the commit may have been done although its answer was lost: then the blob stays.
        if not is_written:
            with contextlib.suppress(storage.StorageError):
                storage.delete_blob(upload_key(file_id))
        log.warning("an upload was not recorded", file_id=file_id, blob="may be left over" if is_written else "removed")
        raise
    if not is_written:  # an earlier call has made the file
        try:
            storage.delete_blob(upload_key(file_id))
        except storage.StorageError:
            log.warning("a second copy of an upload was not removed", file_id=file_id, same_as=file.id)
    return file


@router.get("", operation_id="list_files")
def get_files(
    caller: FilesReader,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> ListPage[FileObject]:
    """The caller's files, the newest first by default."""
    with transaction() as session:
        page = list_files(
            session,
            caller.tenant_id,
            project_id=caller.project_id,
            purpose=purpose,
            after=after,
            limit=limit,
            newest_first=order == "desc",
        )
        return ListPage(
            data=[FileObject.of(file) for file in page.rows],
            first_id=page.first_id,
            last_id=page.last_id,
            has_more=page.has_more,
        )


@router.get("/{file_id}")
def retrieve_file(caller: FilesReader, file_id: str) -> FileObject:
    with transaction() as session, _explained(file_id):
        return FileObject.of(find_file(session, caller.tenant_id, file_id, project_id=caller.project_id))


@router.delete("/{file_id}", operation_id="delete_file")
def remove_file(caller: FilesWriter, file_id: str) -> FileDeleted:
    """Delete a file. 409 while a batch has still to read it."""
    with transaction() as session, _explained(file_id):
        delete_file(session, caller, file_id)
    return FileDeleted(id=file_id)


@router.get(
    "/{file_id}/content",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}},
)
def retrieve_file_content(caller: FilesReader, file_id: str) -> StreamingResponse:
    """The bytes of a file. Of a running batch's output and error file: the lines that are there so far."""
    with transaction() as session, _explained(file_id):
        file = find_file(session, caller.tenant_id, file_id, project_id=caller.project_id)
        check_is_kept(session, file)
    return StreamingResponse(
        _begun(read_content(file)), media_type="application/octet-stream", headers=_content_headers(file)
    )


def _begun(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Read the first piece now, while an error can still be an answer."""
    first = next(chunks, b"")

    def all_chunks() -> Iterator[bytes]:
        yield first
        yield from chunks

    return all_chunks()


def _content_headers(file: File) -> dict[str, str]:
    headers = {"content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename)}"}
    if file.storage_key is not None:  # a view may grow while it is read
        headers["content-length"] = str(file.num_bytes)
    return headers


@contextlib.contextmanager
def _explained(file_id: str) -> Iterator[None]:
    shown = file_id[:128]
    try:
        yield
    except FileNotFoundForTenantError:
        raise ApiError(404, f"No such File object: {shown}", param="id", code="file_not_found") from None
    except FileDroppedError:
        raise ApiError(
            410,
            f"The content of file {shown} is no longer kept: its batch is older than this service keeps requests and "
            "answers. What the batch counted, its usage and its invoices are still there.",
            param="id",
            code="file_dropped",
            headers={"x-should-retry": "false"},
        ) from None
    except FileInUseError:
        raise conflict(
            f"File {shown} is the input of a batch that is still validating. Delete it when the batch has begun, "
            "or cancel the batch first.",
            param="id",
            code="file_in_use",
        ) from None
