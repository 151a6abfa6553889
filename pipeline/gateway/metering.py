"""Counts every call, for the gateway's metrics. It is the first to see a request, and the last to see its answer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.gateway.errors import ApiError
from pipeline.tables.session import get_engine
from pipeline.telemetry.metrics import gateway_names as names
from pipeline.telemetry.metrics.registry import make_counter, make_gauge, make_histogram, make_registry

#: Of a call that no route is for. Its address is never a label: anybody can think of a million.
UNKNOWN_ROUTE: Final = "unknown"

_METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_SCOPE_CODES: Final = frozenset({"missing_scope", "project_key"})


class GatewayMetrics:
    """What one gateway process has counted."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or make_registry(get_engine())
        self.requests = make_counter(names.HTTP_REQUESTS, self.registry)
        self.duration = make_histogram(names.HTTP_DURATION, self.registry)
        self.in_progress = make_gauge(names.HTTP_IN_PROGRESS, self.registry)
        self.bytes_in_flight = make_gauge(names.HTTP_BYTES_IN_FLIGHT, self.registry)
        self.bytes = make_counter(names.HTTP_BYTES, self.registry)
        self.rate_refusals = make_counter(names.RATE_REFUSALS, self.registry)
        self.auth_failures = make_counter(names.AUTH_FAILURES, self.registry)
        # So that the first of each is seen as a rise.
        for direction in ("in", "out"):
            self.bytes.labels(direction)
            self.bytes_in_flight.labels(direction)
        for kind in ("requests", "tokens", "enqueued"):
            self.rate_refusals.labels(kind)
        for reason in ("missing", "invalid", "blocked", "scope"):
            self.auth_failures.labels(reason)

    def count_refusal(self, scope: Scope, error: ApiError) -> None:
        """By what was answered: who was it that could not be let in, and why?"""
        state: Mapping[str, Any] = scope.get("state", {})
        if error.status == 401:
            has_key = any(name == b"authorization" for name, _ in scope["headers"])
            self.auth_failures.labels("invalid" if has_key else "missing").inc()
        elif error.status == 403 and error.code in _SCOPE_CODES:
            self.auth_failures.labels("scope").inc()
        elif error.status == 429 and "caller" not in state:
            self.auth_failures.labels("blocked").inc()
        elif error.status == 429:
            self.rate_refusals.labels(error.kind if error.kind in ("requests", "tokens") else "enqueued").inc()


class MetricsMiddleware:
    def __init__(self, app: ASGIApp, *, metrics: GatewayMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        call = _Call(self.metrics, receive, send)
        began = time.perf_counter()
        self.metrics.in_progress.inc()
        try:
            await self.app(scope, call.receive, call.send)
        finally:
            call.end()
            method = scope["method"] if scope["method"] in _METHODS else "other"
            route = route_of(scope)
            self.metrics.requests.labels(method, route, str(call.status)).inc()
            self.metrics.duration.labels(method, route).observe(time.perf_counter() - began)
            if isinstance(error := scope.get("state", {}).get("error"), ApiError):
                self.metrics.count_refusal(scope, error)
            self.metrics.in_progress.dec()


class _Call:
    """One request on its way through; counts its bytes."""

    def __init__(self, metrics: GatewayMetrics, receive: Receive, send: Send) -> None:
        self.status = 0
        self._receive = receive
        self._send = send
        self._counters = {direction: metrics.bytes.labels(direction) for direction in ("in", "out")}
        self._in_flight = {direction: metrics.bytes_in_flight.labels(direction) for direction in ("in", "out")}
        self._num_bytes = {"in": 0, "out": 0}

    async def receive(self) -> Message:
        message = await self._receive()
        self._count("in", message)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        self._count("out", message)
        await self._send(message)

    def _count(self, direction: str, message: Message) -> None:
        if num_bytes := len(message.get("body", b"")):
            self._num_bytes[direction] += num_bytes
            self._counters[direction].inc(num_bytes)
            self._in_flight[direction].inc(num_bytes)

    def end(self) -> None:
        for direction, num_bytes in self._num_bytes.items():
            self._in_flight[direction].dec(num_bytes)


def route_of(scope: Scope) -> str:
    """The template of the route that was found, such as `/v1/batches/{batch_id}`."""
    path = getattr(scope.get("route"), "path", None)
    if not isinstance(path, str):
        return UNKNOWN_ROUTE
    mounted = str(scope.get("root_path", "")).removeprefix(str(scope.get("app_root_path", "")))
    return path if path.startswith(mounted) and mounted else mounted + path
