"""Uploading an input file: it goes to storage as it comes, and then a quote says what is in it."""

from __future__ import annotations

import json
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from pipeline.console.batch_actions import Writer
from pipeline.console.input_text import read_input_lines
from pipeline.console.quotes import ask_for_quote
from pipeline.console.rendering import render, see_other
from pipeline.console.signing_in import CSRF_FIELD, CSRF_HEADER, check_origin, check_token
from pipeline.files import upload_key
from pipeline.gateway.auth import check_scope
from pipeline.gateway.errors import invalid
from pipeline.gateway.files import record_received
from pipeline.gateway.uploads import receive_upload
from pipeline.ids import new_file_id
from pipeline.schemas.batches import ENDPOINTS
from pipeline.schemas.files import BATCH_PURPOSE
from pipeline.settings import get_settings
from pipeline.tables import OnInvalid, ServiceClass
from pipeline.tenancy.console_sessions import Viewer
from pipeline.tenancy.scopes import Scope

router = APIRouter()

#: The first lines, and bytes of each, that are looked at for what endpoint the file is for.
_FIRST_LINES: Final = 20
_MOST_LINE_BYTES: Final = 1024**2


def _uploader(viewer: Writer) -> Viewer:
    check_scope(viewer.principal, Scope.FILES_WRITE)
    return viewer


Uploader = Annotated[Viewer, Depends(_uploader)]


@router.get("/upload")
def show_upload(request: Request, viewer: Uploader) -> Response:
    return render(request, "upload.html", most_bytes=get_settings().max_batch_file_bytes)


@router.post("/upload")
async def upload(request: Request, viewer: Uploader) -> Response:
    """The token is in the address or in a header: the body is not held, and what comes first of it is the file."""
    check_origin(request)
    check_token(viewer, request.headers.get(CSRF_HEADER) or request.query_params.get(CSRF_FIELD, ""))
    file_id = new_file_id()
    received = await receive_upload(request, upload_key(file_id), get_settings())
    await run_in_threadpool(record_received, file_id, viewer.principal, received)
    if received.purpose != BATCH_PURPOSE:
        raise invalid("purpose", f"The file was kept as {file_id}; only one of purpose '{BATCH_PURPOSE}' can be run.")
    quote_id = await run_in_threadpool(_first_quote, viewer, file_id)
    return see_other(f"/console/quotes/{quote_id}")


def _first_quote(viewer: Viewer, file_id: str) -> str:
    return ask_for_quote(
        viewer.principal,
        file_id=file_id,
        endpoint=_endpoint_of(file_id),
        on_invalid=OnInvalid.FAIL,
        service_class=ServiceClass.STANDARD,
    )


def _endpoint_of(file_id: str) -> str:
    """What the first line that says so is for; the first endpoint there is where none does."""
    first = read_input_lines(upload_key(file_id), range(1, _FIRST_LINES + 1), _MOST_LINE_BYTES)
    urls = (_url_of(line.data) for _, line in sorted(first.items()))
    return next((url for url in urls if url in ENDPOINTS), ENDPOINTS[0])


def _url_of(line: bytes) -> str | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    url = found.get("url") if isinstance(found, dict) else None
    return url if isinstance(url, str) else None
