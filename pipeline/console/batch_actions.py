"""What can be done with a batch: the same as by the API, and with the same answers."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from pipeline.console.batch_rows import find_batch
from pipeline.console.failures import not_found
from pipeline.console.rendering import see_other
from pipeline.console.signing_in import SignedForm, viewer_with
from pipeline.gateway.batch_actions import request_pause, request_resume, request_retry
from pipeline.gateway.batches import request_cancel
from pipeline.gateway.files import retrieve_file_content
from pipeline.tables.session import transaction
from pipeline.tenancy.console_sessions import Viewer
from pipeline.tenancy.scopes import Scope

router = APIRouter()

Writer = Annotated[Viewer, Depends(viewer_with(Scope.BATCHES_WRITE))]
FilesReader = Annotated[Viewer, Depends(viewer_with(Scope.FILES_READ))]


@router.post("/batches/{batch_id}/cancel")
def cancel(viewer: Writer, form: SignedForm, batch_id: str) -> Response:
    request_cancel(viewer.principal, batch_id)
    return see_other(f"/console/batches/{batch_id}")


@router.post("/batches/{batch_id}/pause")
def pause(viewer: Writer, form: SignedForm, batch_id: str) -> Response:
    request_pause(viewer.principal, batch_id)
    return see_other(f"/console/batches/{batch_id}")


@router.post("/batches/{batch_id}/resume")
def resume(viewer: Writer, form: SignedForm, batch_id: str) -> Response:
    request_resume(viewer.principal, batch_id)
    return see_other(f"/console/batches/{batch_id}")


@router.post("/batches/{batch_id}/retry")
def retry(request: Request, viewer: Writer, form: SignedForm, batch_id: str) -> Response:
    """A new batch of what has no answer. Pressing the button twice makes one: `once` names the press."""
    batch = request_retry(request, viewer.principal, batch_id, form.get("once") or None)
    return see_other(f"/console/batches/{batch.id}")


@router.get("/batches/{batch_id}/files/{which}")
def download(viewer: FilesReader, batch_id: str, which: Literal["input", "output", "error"]) -> Response:
    """Of a running batch: the lines that are there so far."""
    with transaction() as session:
        batch = find_batch(session, viewer.principal, batch_id)
    file_id = {
        "input": batch.input_file_id,
        "output": batch.shown_output_file_id,
        "error": batch.shown_error_file_id,
    }[which]
    if file_id is None:
        raise not_found("file")
    return retrieve_file_content(viewer.principal, file_id)
