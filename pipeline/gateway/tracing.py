"""A span of each call, below the one that its client names in a `traceparent`. Only where traces are on."""

from __future__ import annotations

from typing import Final

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.gateway.metering import UNKNOWN_ROUTE, route_of
from pipeline.telemetry import tracing
from pipeline.telemetry.genai_names import HTTP_METHOD, HTTP_ROUTE, HTTP_STATUS, TENANT
from pipeline.tenancy.keys import Principal

#: Asked again and again, by machines.
_UNTRACED: Final = frozenset({"/healthz", "/readyz", "/metrics"})


class TracingMiddleware:
    """Without query, headers, body, or an id in the span's name. Lines of logs have the trace's id meanwhile."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _UNTRACED:
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("traceparent", "")
        parent = given if tracing.is_traceparent(given) else None
        with tracing.span(scope["method"], {HTTP_METHOD: scope["method"]}, parent=parent, is_server=True) as span:

            async def send_seen(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set({HTTP_STATUS: message["status"]})
                    if message["status"] >= 500:
                        span.fail(str(message["status"]))
                await send(message)

            with structlog.contextvars.bound_contextvars(trace=tracing.trace_id(span.context)):
                try:
                    await self.app(scope, receive, send_seen)
                finally:
                    # Known when the call was routed.
                    route = None if (found := route_of(scope)) == UNKNOWN_ROUTE else found
                    caller: Principal | None = scope.get("state", {}).get("caller")
                    span.set({HTTP_ROUTE: route, TENANT: None if caller is None else caller.tenant_id})
                    if route is not None:
                        span.rename(f"{scope['method']} {route}")
