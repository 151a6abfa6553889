"""Errors towards clients: one shape, OpenAI's, for every answer that is no success."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException

from pipeline.errors import PipelineError
from pipeline.jobs.idempotency import CallInProgressError, IdempotencyKeyReusedError
from pipeline.paging import UnknownCursorError
from pipeline.schemas.errors import ErrorBody, ErrorResponse
from pipeline.storage import StorageError
from pipeline.telemetry.logs import summarize_error
from pipeline.tenancy.keys import InvalidKeyError
from pipeline.tenancy.queue_limits import QueueLimitError

log = structlog.get_logger(__name__)

#: Seconds after which a client should try again when a server behind the gateway is away.
RETRY_AFTER_SECONDS = 2


class ApiError(PipelineError):
    """An answer that is no success."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        body = ErrorResponse(error=ErrorBody(message=self.message, type=self.kind, param=self.param, code=self.code))
        return JSONResponse(body.model_dump(), status_code=self.status, headers=self.headers)


def invalid(param: str | None, message: str, code: str = "invalid_value") -> ApiError:
    """What the client sent can't be used."""
    return ApiError(400, message, param=param, code=code)


def unavailable(message: str) -> ApiError:
    """The request was fine and may be sent again."""
    return ApiError(
        503,
        message,
        kind="server_error",
        code="service_unavailable",
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


def conflict(message: str, *, param: str, code: str) -> ApiError:
    """What is asked for can't be done as things are; the client of OpenAI would try again if it were not told."""
    return ApiError(409, message, param=param, code=code, headers={"x-should-retry": "false"})


def unauthorized(message: str, code: str | None) -> ApiError:
    return ApiError(401, message, code=code, headers={"WWW-Authenticate": "Bearer"})


def too_many_failures(seconds: int) -> ApiError:
    """Of keys from one address; the client of OpenAI need not try again."""
    return ApiError(
        429,
        "Too many calls with an incorrect API key from this address. Check the key; a right one works at once.",
        kind="requests",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(seconds), "x-should-retry": "false"},
    )


def internal_error() -> ApiError:
    """Says nothing of what happened; the log does, under the request's id."""
    return ApiError(
        500,
        "The server had an error while processing your request. If it stays, tell the operator the x-request-id.",
        kind="server_error",
        code="internal_error",
    )


def add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(ApiError, _render)
    app.add_exception_handler(InvalidKeyError, _render)
    app.add_exception_handler(UnknownCursorError, _render)
    app.add_exception_handler(IdempotencyKeyReusedError, _render)
    app.add_exception_handler(CallInProgressError, _render)
    app.add_exception_handler(QueueLimitError, _render)
    app.add_exception_handler(StorageError, _render)
    app.add_exception_handler(OperationalError, _render)
    app.add_exception_handler(InterfaceError, _render)
    app.add_exception_handler(PoolTimeoutError, _render)
    app.add_exception_handler(RequestValidationError, _render)
    app.add_exception_handler(HTTPException, _render)


async def _render(request: Request, error: Exception) -> JSONResponse:
    request.state.error = as_api_error(request, error)  # for whoever counts refusals
    response: JSONResponse = request.state.error.response()
    return response


def as_api_error(request: Request, error: Exception) -> ApiError:
    match error:
        case ApiError():
            return error
        case InvalidKeyError():
            return unauthorized(
                "Incorrect API key provided. It is unknown, was revoked, or has expired.", "invalid_api_key"
            )
        case UnknownCursorError():
            return invalid("after", "Invalid 'after': there is no such object to begin after.")
        case IdempotencyKeyReusedError():
            return conflict(str(error), param="Idempotency-Key", code="idempotency_key_reused")
        case CallInProgressError():
            return ApiError(
                409,
                str(error),
                param="Idempotency-Key",
                code="idempotency_key_in_use",
                headers={"Retry-After": "1"},
            )
        case QueueLimitError():
            return ApiError(429, str(error), code=error.code, headers={"Retry-After": "60", "x-should-retry": "false"})
        case StorageError():
            log.error("blob storage failed", reason=str(error))
            return unavailable(
                "The file storage of this service can't be used at the moment, and nothing was recorded. Try again "
                "later; if it stays, tell the operator that the storage is full or unreachable."
            )
        case OperationalError() | InterfaceError() | PoolTimeoutError():
            log.error("PostgreSQL failed", reason=summarize_error(error))
            return unavailable("The database of this service is not available at the moment. Try again.")
        case RequestValidationError():
            return _first_mistake(error.errors())
        case HTTPException(__cause__=ApiError() as cause):  # raised while FastAPI was reading the body
            return cause
        case HTTPException(status_code=404):
            return ApiError(404, f"Invalid URL ({request.method} {request.url.path})", code="unknown_url")
        case HTTPException(status_code=405):
            return ApiError(
                405,
                f"Not allowed to {request.method} on {request.url.path}.",
                code="method_not_supported",
                headers=error.headers,
            )
        case HTTPException():
            return ApiError(error.status_code, str(error.detail), headers=error.headers)
        case _:
            log.error("unexpected error", exc_info=error)
            return internal_error()


def _first_mistake(mistakes: Sequence[Any]) -> ApiError:
    """OpenAI reports one mistake of a request at a time; so do we, the first."""
    mistake: Mapping[str, Any] = mistakes[0]
    kind = str(mistake["type"])
    if kind == "json_invalid":
        return ApiError(400, "We could not parse the JSON body of your request.", code="invalid_json")
    # The first part is body, query, path or header; `[key]` says that a key is meant and not its value.
    param = ".".join(str(part) for part in mistake["loc"][1:] if part != "[key]")[:128] or None
    if param is None:
        return ApiError(400, "The body of the request must be a JSON object.", code="invalid_type")
    if kind == "missing":
        return invalid(param, f"Missing required parameter: '{param}'.", "missing_required_parameter")
    if kind == "extra_forbidden":
        return invalid(param, f"Unknown parameter: '{param}'.", "unknown_parameter")
    reason = str(mistake.get("ctx", {}).get("error") or mistake["msg"])
    return invalid(param, f"Invalid '{param}': {reason}")
