"""What a gateway counts, and that it is to be read on its own port alone."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import httpx2
import pytest
from fastapi import FastAPI
from running_gateways import new_tenant, serve
from running_groups import wait_for
from scraping import Scraped, scrape, scrape_registry
from sqlalchemy import Engine

from pipeline.gateway import create_app
from pipeline.gateway.errors import ApiError
from pipeline.gateway.progress_feed import MAX_STREAMS_PER_KEY
from pipeline.telemetry.metrics.gateway_names import COMMON_METRICS, GATEWAY_METRICS
from pipeline.telemetry.metrics.server import MetricsServer
from pipeline.tenancy.keys import Principal


@dataclass(frozen=True)
class Counting:
    """A gateway, and a way to read what it counted."""

    address: str
    app: FastAPI

    def read(self) -> Scraped:
        """When all calls so far are counted, which comes after their answers were sent."""
        registry = self.app.state.metrics.registry
        name = "ryzanstein_http_requests_in_progress"
        found: Scraped = wait_for(lambda: (now := scrape_registry(registry)).value(name) == 0 and now)
        return found

    def get(self, path: str, **headers: str) -> int:
        return httpx2.get(self.address + path, headers=headers).status_code


@pytest.fixture
def gateway(
    database: Engine, redis_url: str, set_before_start: Callable[[str, object], None], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Counting]:
    set_before_start("KEY_FAILURES_PER_MINUTE", 1)
    set_before_start("TENANT_REQUESTS_PER_MINUTE", 3)
    app = create_app()
    with serve(app) as address:
        yield Counting(address, app)


def test_calls_are_counted_by_route_and_never_by_address(gateway: Counting) -> None:
    acme = new_tenant(gateway.address, "acme")
    acme.http.get("/v1/batches/batch_made_up")
    acme.http.get("/v1/batches/batch_of_another")
    for path in ("/wp-login.php", "/v1/nothing", "/console/static/nothing.js", "/healthz"):
        gateway.get(path)
    found = gateway.read()
    name = "ryzanstein_http_requests_total"
    assert found.value(name, method="GET", route="/v1/batches/{batch_id}", status="404") == 2
    assert found.value(name, route="/healthz", status="200") == 1
    assert found.total(name, route="unknown") >= 2
    routes = found.values_of(name, "route")
    assert not any("made_up" in route or "wp-login" in route or "nothing" in route for route in routes), routes
    assert found.value("ryzanstein_http_request_duration_seconds_count", route="/v1/batches/{batch_id}") == 2
    assert found.value("ryzanstein_http_bytes_total", direction="out") > 0
    assert found.value("ryzanstein_http_bytes_in_flight", direction="out") == 0
    named = {name for metric in (*COMMON_METRICS, *GATEWAY_METRICS) for name in metric.series_names}
    assert named <= found.names
    acme.client.close()
    acme.http.close()


def test_who_is_not_let_in_is_counted_by_why(gateway: Counting) -> None:
    reader = new_tenant(gateway.address, "acme", scopes=["files:read"])
    gateway.get("/v1/files")
    for _ in range(3):
        gateway.get("/v1/files", authorization="Bearer rz_wrong_key")
    statuses = [reader.http.get("/v1/batches").status_code for _ in range(4)]
    assert statuses == [403, 403, 403, 429]
    found = gateway.read()
    counted = {
        reason: found.value("ryzanstein_auth_failures_total", reason=reason)
        for reason in ("missing", "invalid", "blocked", "scope")
    }
    assert counted == {"missing": 1, "invalid": 1, "blocked": 2, "scope": 3}
    assert found.value("ryzanstein_rate_limit_refusals_total", kind="requests") == 1
    reader.client.close()
    reader.http.close()


def test_a_key_with_too_many_streams_has_not_too_much_enqueued(gateway: Counting) -> None:
    metrics = gateway.app.state.metrics
    principal = Principal(tenant_id="tenant_acme", api_key_id="key_acme")
    with ExitStack() as streams:
        for _ in range(MAX_STREAMS_PER_KEY):
            streams.enter_context(gateway.app.state.progress.place(principal))
        with pytest.raises(ApiError) as refused:
            streams.enter_context(gateway.app.state.progress.place(principal))
    metrics.count_refusal({"state": {"caller": principal}, "headers": []}, refused.value)
    found = gateway.read()
    name = "ryzanstein_rate_limit_refusals_total"
    assert [found.value(name, kind=kind) for kind in ("requests", "enqueued")] == [1, 0]


def test_metrics_are_on_a_port_of_their_own_and_not_on_the_public_one(gateway: Counting) -> None:
    assert gateway.get("/metrics") == 404
    server = MetricsServer("127.0.0.1", 0, gateway.app.state.metrics.registry, "A_PORT")
    try:
        base = f"http://127.0.0.1:{server.port}"
        assert scrape(f"{base}/metrics").value("ryzanstein_build_info") == 1
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{base}/v1/batches")
    finally:
        server.stop()
