"""What every answer of the console says to the browser, and a page for what went wrong unforeseen."""

from __future__ import annotations

import secrets
from typing import Final

import structlog
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.console.failures import failure_page
from pipeline.gateway.errors import ApiError, internal_error

log = structlog.get_logger(__name__)

# Scripts and styles are files of ours. The charts make a style element of their own, which bears the page's nonce.
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'nonce-{nonce}'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)


def refusal_page(error: ApiError) -> ASGIApp:
    """What the gateway answers with before the console has seen the request."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await failure_page(Request(scope), error)(scope, receive, send)

    return HeadersMiddleware(answer)


class HeadersMiddleware:
    """Adds the headers, and gives `request.state.nonce` to what renders."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        nonce = secrets.token_urlsafe(16)
        scope.setdefault("state", {})["nonce"] = nonce
        is_begun = False

        async def send_guarded(message: Message) -> None:
            nonlocal is_begun
            if message["type"] == "http.response.start":
                is_begun = True
                headers = MutableHeaders(scope=message)
                headers["content-security-policy"] = _POLICY.format(nonce=nonce)
                headers["x-frame-options"] = "DENY"
                # Not `no-referrer`: forms would then be sent without an origin, by which forged ones are told.
                headers["referrer-policy"] = "same-origin"
                headers["cross-origin-opener-policy"] = "same-origin"
                headers["cross-origin-resource-policy"] = "same-origin"
                headers["permissions-policy"] = "camera=(), geolocation=(), microphone=(), payment=(), usb=()"
            await send(message)

        try:
            await self.app(scope, receive, send_guarded)
        except ClientDisconnect:
            raise
        except Exception as error:
            if is_begun:
                raise
            log.exception("unexpected error", exc_info=error)
            page = failure_page(Request(scope), internal_error())
            await page(scope, receive, send_guarded)
