"""What holds for every request: an id, a log line, limits on its body and its time, and an answer in any case."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import MutableMapping
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.gateway.errors import ApiError, internal_error, unavailable
from pipeline.ids import new_id
from pipeline.tenancy.keys import Principal

log = structlog.get_logger(__name__)

#: A caller may name its request, in letters that are safe in logs.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

#: Largest body of a request that is no upload; the largest real one is a batch with all its metadata.
MAX_JSON_BYTES = 1024**2

#: From the last piece of the request's body to the first of the answer, in seconds. A database that hangs, or that
#: vanished without closing its connections, is what takes longer.
ANSWER_SECONDS = 10.0
#: The same where blobs are written, for an answer that waits for the disk, or for a store in the network.
UPLOAD_ANSWER_SECONDS = 60.0


def is_upload(scope: Scope) -> bool:
    return scope["method"] == "POST" and scope["path"] in ("/v1/files", "/console/upload")


def writes_blob(scope: Scope) -> bool:
    return is_upload(scope) or (scope["method"] == "POST" and scope["path"].endswith("/retry"))


def _refusal(scope: Scope, error: ApiError) -> ASGIApp:
    """JSON, and within the console a page."""
    if scope["path"].startswith("/console/"):
        from pipeline.console.headers import refusal_page  # which is made of parts of the gateway

        return refusal_page(error)
    return error.response()


class RequestMiddleware:
    """Gives each request an `x-request-id`, logs it and its caller without query, headers or body, and turns a crash
    into a 500."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else new_id("req")
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started = time.perf_counter()
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["x-content-type-options"] = "nosniff"
                headers.setdefault("cache-control", "no-store")
                headers.update(scope.get("state", {}).get("headers", {}))
            await send(message)

        try:
            await self.app(scope, receive, send_marked)
        except ClientDisconnect:
            log.info("the client went away", method=scope["method"], path=scope["path"])
        except Exception as error:
            log.exception("unexpected error", exc_info=error)
            if status:
                raise  # half an answer is out: closing the connection is the only way left to say so
            await internal_error().response()(scope, receive, send_marked)
        finally:
            report = log.debug if scope["path"] in ("/healthz", "/readyz") else log.info
            report(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                ms=round((time.perf_counter() - started) * 1000, 1),
                **_caller(scope),
            )
            structlog.contextvars.unbind_contextvars("request_id")


def _caller(scope: Scope) -> dict[str, str]:
    """By its ids; nothing where none was asked for, or none was right."""
    principal: Principal | None = scope.get("state", {}).get("caller")
    return {} if principal is None else {"tenant": principal.tenant_id, "api_key": principal.api_key_id}


class LimitsMiddleware:
    """Refuses what no real request has: a NUL in its address, which SQL can't hold, or a body that is too long.

    A body may say its length or not; uploads have a limit of their own.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if "\x00" in scope["path"] or b"%00" in scope["query_string"]:
            error = ApiError(400, "The address of this request contains a NUL character.", code="invalid_url")
            await _refusal(scope, error)(scope, receive, send)
            return
        if is_upload(scope):
            await self.app(scope, receive, send)
            return
        too_large = ApiError(
            413, f"The body of this request may have {MAX_JSON_BYTES} bytes at most.", code="request_too_large"
        )
        num_said = Headers(scope=scope).get("content-length", "0")
        if num_said.isdigit() and int(num_said) > MAX_JSON_BYTES:
            await _refusal(scope, too_large)(scope, receive, send)
            return
        num_bytes = 0

        async def receive_counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > MAX_JSON_BYTES:
                raise too_large
            return message

        await self.app(scope, receive_counted, send)


class DeadlineMiddleware:
    """Answers 503 where nothing else answers in time, so that no client hangs with a server behind the gateway.

    The work goes on in its thread, which can't be stopped; its answer is thrown away.
    """

    def __init__(self, app: ASGIApp, *, seconds: float, upload_seconds: float) -> None:
        self.app = app
        self.seconds = seconds
        self.upload_seconds = upload_seconds
        self._abandoned: set[asyncio.Future[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(receive, send)
        work = asyncio.ensure_future(self.app(scope, exchange.receive, exchange.send))
        limit = self.upload_seconds if writes_blob(scope) else self.seconds
        try:
            while not work.done() and not exchange.is_answering:
                left = exchange.idle_since + limit - time.monotonic()
                if left <= 0 and not exchange.is_receiving:
                    break
                await asyncio.wait(
                    {work, exchange.answering}, timeout=max(left, 0.05), return_when=asyncio.FIRST_COMPLETED
                )
            if work.done() or exchange.is_answering:
                await work
                return
        except asyncio.CancelledError:
            work.cancel()
            raise
        exchange.is_abandoned = True
        self._abandoned.add(work)
        work.add_done_callback(self._forget)
        log.error("no answer in time", method=scope["method"], path=scope["path"], seconds=limit)
        error = unavailable(
            "A server behind this service does not answer at the moment. Try again; what you asked for may or may not "
            "have been done."
        )
        await _refusal(scope, error)(scope, receive, send)

    def _forget(self, work: asyncio.Future[None]) -> None:
        self._abandoned.discard(work)
        if not work.cancelled() and (error := work.exception()) is not None:
            log.warning("abandoned work failed", exc_info=error)


class _Exchange:
    """Watches one request: is its body being waited for, has its answer begun, since when is neither so?"""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self.idle_since = time.monotonic()
        self.is_receiving = False
        self.is_abandoned = False
        self.answering: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_answering(self) -> bool:
        return self.answering.done()

    async def receive(self) -> MutableMapping[str, Any]:
        self.is_receiving = True
        try:
            return await self._receive()
        finally:
            self.is_receiving = False
            self.idle_since = time.monotonic()

    async def send(self, message: Message) -> None:
        if self.is_abandoned:
            return
        if not self.is_answering:
            self.answering.set_result(None)
        await self._send(message)
