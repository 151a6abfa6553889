"""Errors as pages. What they say is what the API would say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlencode

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException

from pipeline.console.rendering import render
from pipeline.errors import PipelineError
from pipeline.gateway.errors import ApiError, as_api_error
from pipeline.jobs.idempotency import CallInProgressError, IdempotencyKeyReusedError
from pipeline.paging import UnknownCursorError
from pipeline.storage import StorageError
from pipeline.tenancy.queue_limits import QueueLimitError

_TITLES: Final[Mapping[int, str]] = {
    400: "This can't be done as it was asked",
    403: "This key may not do this",
    404: "There is no such page",
    405: "There is no such page",
    409: "This can't be done any more",
    410: "This is no longer kept",
    413: "This is too large",
    429: "Too many calls",
    503: "The service is not available",
}
#: Handlers are asked in this order of what an error is.
_KINDS: Final[tuple[type[Exception], ...]] = (
    ApiError,
    UnknownCursorError,
    IdempotencyKeyReusedError,
    CallInProgressError,
    QueueLimitError,
    StorageError,
    OperationalError,
    InterfaceError,
    PoolTimeoutError,
    RequestValidationError,
    HTTPException,
)


class SignedOutError(PipelineError):
    """Nobody is signed in, or the session has ended."""

    def __init__(self, *, had_session: bool) -> None:
        super().__init__("Your session has ended. Sign in again.")
        self.had_session = had_session


def not_found(what: str) -> ApiError:
    """For what is not there and for what is another's, alike; `what` is such as `batch`."""
    return ApiError(404, f"There is no such {what}, or your key may not see it.", code="not_found")


def add_failure_pages(console: FastAPI) -> None:
    for kind in _KINDS:
        console.add_exception_handler(kind, _failed)
    console.add_exception_handler(SignedOutError, _signed_out)


def failure_page(request: Request, error: ApiError) -> Response:
    title = _TITLES.get(error.status, "Something went wrong")
    headers = {name: value for name, value in error.headers.items() if name == "Retry-After"}
    return render(
        request, "failure.html", status=error.status, headers=headers, heading=title, message=error.message, error=error
    )


async def _failed(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code in (404, 405):
        return failure_page(request, not_found("page"))
    return failure_page(request, as_api_error(request, error))


async def _signed_out(request: Request, error: Exception) -> Response:
    """To the sign-in page, and from there back to where one was; what a form sent is not sent again."""
    assert isinstance(error, SignedOutError)
    query = {}
    if request.method == "GET":
        path = request.scope["path"]
        query["next"] = f"{path}?{request.url.query}" if request.url.query else path
    if error.had_session:
        query["ended"] = "1"
    return RedirectResponse(f"/console/sign-in?{urlencode(query)}", status_code=303)
