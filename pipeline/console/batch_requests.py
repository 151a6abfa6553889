"""A batch's requests, its answers beside their prompts, and its errors beside their lines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from pipeline.console.batch_actions import FilesReader
from pipeline.console.batch_rows import BatchRow, find_batch, rows_of
from pipeline.console.batches import Reader, Words
from pipeline.console.failures import not_found
from pipeline.console.input_text import LineText, read_input_lines
from pipeline.console.messages import answer_of, prompt_of
from pipeline.console.rendering import render
from pipeline.console.request_rows import (
    OUTCOMES,
    find_request,
    read_answer,
    read_answers,
    read_errors,
    read_requests,
)
from pipeline.gateway.auth import check_scope
from pipeline.storage import BlobNotFoundError
from pipeline.tables import Batch, File
from pipeline.tables.session import transaction
from pipeline.tenancy.console_sessions import Viewer
from pipeline.tenancy.scopes import Scope

router = APIRouter()

#: Rows on a page.
_PAGE: Final = 50
_ANSWERS_PAGE: Final = 10
#: Of a line that is shown for its error, and of one whose prompt is shown, so many bytes at most.
MOST_LINE_BYTES: Final = 2_000
_MOST_PROMPT_BYTES: Final = 256 * 1024

#: Numbers of lines are what a column of 64 bits can hold.
Line = Annotated[int, Query(ge=0, lt=2**63)]


@router.get("/batches/{batch_id}/requests")
def list_requests(
    request: Request, viewer: Reader, batch_id: str, outcome: Words = "", custom_id: Words = "", after: Line = 0
) -> Response:
    """An outcome that is none narrows nothing; a custom_id finds the one request that has it."""
    outcome = outcome if outcome in OUTCOMES else ""
    with transaction() as session:
        row = _row(session, viewer, batch_id)
        if custom_id:
            page = find_request(session, batch_id, custom_id)
        else:
            page = read_requests(session, batch_id, outcome=outcome, after=after, limit=_PAGE)
    path = f"/console/batches/{batch_id}/requests"
    given = {"outcome": outcome} if outcome else {}
    return render(
        request,
        "batch_requests.html",
        batch=row.batch,
        row=row,
        tab="requests",
        requests=page.rows,
        outcomes=OUTCOMES,
        outcome=outcome,
        custom_id=custom_id,
        first_url=f"{path}?{urlencode(given)}" if after else None,
        next_url=None if page.next_after is None else f"{path}?{urlencode({**given, 'after': page.next_after})}",
    )


@router.get("/batches/{batch_id}/requests/{line}")
def show_request(request: Request, viewer: FilesReader, batch_id: str, line: int) -> Response:
    """One request beside its answer."""
    check_scope(viewer.principal, Scope.BATCHES_READ)
    with transaction() as session:
        row = _row(session, viewer, batch_id)
        found = read_answer(session, batch_id, line) if 0 < line < 2**63 else None
        if found is None:
            raise not_found("request")
        lines = _lines_of(session, row.batch, [line], _MOST_PROMPT_BYTES)
    return render(
        request,
        "batch_answers.html",
        batch=row.batch,
        row=row,
        tab="requests",
        line=line,
        next_url=None,
        first_url=None,
        pairs=[_pair(found, lines)],
    )


@router.get("/batches/{batch_id}/answers")
def list_answers(request: Request, viewer: FilesReader, batch_id: str, after: Line = 0) -> Response:
    """Answers side by side with their prompts."""
    check_scope(viewer.principal, Scope.BATCHES_READ)
    with transaction() as session:
        row = _row(session, viewer, batch_id)
        page = read_answers(session, batch_id, after=after, limit=_ANSWERS_PAGE)
        lines = _lines_of(session, row.batch, [found.line for found in page.rows], _MOST_PROMPT_BYTES)
    path = f"/console/batches/{batch_id}/answers"
    return render(
        request,
        "batch_answers.html",
        batch=row.batch,
        row=row,
        tab="answers",
        line=None,
        pairs=[_pair(found, lines) for found in page.rows],
        first_url=path if after else None,
        next_url=None if page.next_after is None else f"{path}?after={page.next_after}",
    )


@router.get("/batches/{batch_id}/errors")
def list_errors(
    request: Request, viewer: Reader, batch_id: str, after: Annotated[int, Query(ge=-1, lt=2**63)] = -1
) -> Response:
    """Each with the line that it is about, as far as the key may read files."""
    with transaction() as session:
        row = _row(session, viewer, batch_id)
        errors, next_after = read_errors(session, batch_id, after=after, limit=_PAGE)
        lines: dict[int, LineText] = {}
        if viewer.principal.may(Scope.FILES_READ):
            lines = _lines_of(session, row.batch, [error.line for error in errors], MOST_LINE_BYTES) or {}
    path = f"/console/batches/{batch_id}/errors"
    return render(
        request,
        "batch_errors.html",
        batch=row.batch,
        row=row,
        tab="errors",
        errors=errors,
        lines=lines,
        first_url=path if after >= 0 else None,
        next_url=None if next_after is None else f"{path}?after={next_after}",
    )


def _row(session: Session, viewer: Viewer, batch_id: str) -> BatchRow:
    return rows_of(session, [find_batch(session, viewer.principal, batch_id)])[0]


def _lines_of(session: Session, batch: Batch, numbers: Iterable[int], most_bytes: int) -> dict[int, LineText] | None:
    """None where the input file is gone."""
    file = session.get(File, batch.input_file_id)
    if file is None or file.storage_key is None or file.deleted_at is not None:
        return None
    try:
        return read_input_lines(file.storage_key, numbers, most_bytes)
    except BlobNotFoundError:
        return None


def _pair(found: Any, lines: dict[int, LineText] | None) -> dict[str, Any]:
    line = None if lines is None else lines.get(found.line)
    prompt = prompt_of(line.data) if line is not None and line.is_whole else None
    return {
        "request": found,
        "prompt": prompt,
        #: Where it can't be told who says what.
        "line": line if prompt is None else None,
        "is_input_gone": lines is None,
        "answer": None if found.body is None else answer_of(found.body),
    }
