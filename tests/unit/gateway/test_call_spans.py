"""What the span of a call is named by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from pipeline.gateway.tracing import TracingMiddleware
from pipeline.telemetry import tracing
from pipeline.telemetry.genai_names import HTTP_ROUTE
from pipeline.telemetry.tracing import Span, Value


class KeptSpan:
    context = None

    def __init__(self, name: str, attributes: Mapping[str, Value | None]) -> None:
        self.name = name
        self.attributes = dict(attributes)

    def set(self, attributes: Mapping[str, Value | None]) -> None:
        self.attributes |= attributes

    def rename(self, name: str) -> None:
        self.name = name

    def fail(self, error_type: str) -> None:
        self.attributes["error"] = error_type

    def end(self, at_ns: int | None = None) -> None:
        pass


class KeepingTracer:
    def __init__(self) -> None:
        self.spans: list[KeptSpan] = []

    def start(
        self,
        name: str,
        *,
        parent: str | None,
        links: Iterable[str],
        attributes: Mapping[str, Value | None],
        is_server: bool,
        start_ns: int | None,
    ) -> Span:
        self.spans.append(KeptSpan(name, attributes))
        return self.spans[-1]

    @contextmanager
    def activate(self, span: Span) -> Iterator[None]:
        yield

    def current_context(self) -> str | None:
        return None


@pytest.fixture
def tracer(monkeypatch: pytest.MonkeyPatch) -> KeepingTracer:
    kept = KeepingTracer()
    monkeypatch.setattr(tracing, "_tracer", kept)
    return kept


def app_with_console() -> FastAPI:
    app, console = FastAPI(), FastAPI()

    @app.get("/v1/batches/{batch_id}")
    @console.get("/batches/{batch_id}")
    async def batch(batch_id: str) -> str:
        return batch_id

    app.mount("/console", console)
    app.add_middleware(TracingMiddleware)
    return app


@pytest.mark.parametrize(
    ("path", "name", "route"),
    [
        ("/v1/batches/batch_1", "GET /v1/batches/{batch_id}", "/v1/batches/{batch_id}"),
        ("/console/batches/batch_1", "GET /console/batches/{batch_id}", "/console/batches/{batch_id}"),
        ("/v1/secrets/hunter2", "GET", None),
        ("/console/secrets/hunter2", "GET", None),
    ],
)
def test_a_call_is_named_by_its_route_wherever_it_is_mounted(
    tracer: KeepingTracer, path: str, name: str, route: str | None
) -> None:
    TestClient(app_with_console()).get(path)

    (span,) = tracer.spans
    assert (span.name, span.attributes[HTTP_ROUTE]) == (name, route)
