"""PostgreSQL is lost in every way, and batches are submitted meanwhile: refused, and none of them half accepted."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import psycopg
import pytest
from running_gateways import Tenant, error_of, new_tenant, postgres_processes, serve, wait_for
from seeds import seed_model, sql

from pipeline.embedded import EmbeddedPostgres
from pipeline.gateway import create_app
from pipeline.jobs.audit import audit
from pipeline.tables.session import get_engine

#: What is promised is 2 s; a machine that is busy with other tests takes longer.
GENEROUS_SECONDS = 10.0
#: Short, for a server that hangs: what has not answered by then is a 503, on a machine that is busy, too.
ANSWER_SECONDS = 5.0


def freeze(server: EmbeddedPostgres) -> Callable[[], object]:
    pids = postgres_processes(server)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    return lambda: [os.kill(pid, signal.SIGCONT) for pid in pids]


def kill(server: EmbeddedPostgres) -> Callable[[], object]:
    for pid in postgres_processes(server):
        os.kill(pid, signal.SIGKILL)
    return server.start


def refuse(server: EmbeddedPostgres) -> Callable[[], object]:
    """A server that has ended in order: nobody listens."""
    server.stop()
    return server.start


def use_up(server: EmbeddedPostgres) -> Callable[[], object]:
    """All connections are in use, by others."""
    get_engine().dispose()
    others: list[psycopg.Connection[tuple[object, ...]]] = []
    url = server.url.replace("postgresql+psycopg", "postgresql")
    while True:
        try:
            others.append(psycopg.connect(url))
        except psycopg.OperationalError:
            break
    assert len(others) > 10
    return lambda: [other.close() for other in others]


def submit(tenant: Tenant, file_id: str) -> tuple[int, str | None]:
    """Status, and the time after which to try again."""
    body = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
    response = tenant.http.post("/v1/batches", json=body)
    if response.status_code != 200:
        error = error_of(response)
        assert (error["type"], error["code"]) == ("server_error", "service_unavailable")
    return response.status_code, response.headers.get("retry-after")


@pytest.mark.parametrize("lose", [kill, freeze, refuse, use_up])
def test_without_postgresql_the_gateway_is_not_ready_and_no_batch_is_half_accepted(
    own_postgres: EmbeddedPostgres, lose: Callable[[EmbeddedPostgres], Callable[[], object]]
) -> None:
    seed_model(get_engine())
    with serve(create_app(answer_seconds=ANSWER_SECONDS)) as address:
        tenant = new_tenant(address, "acme")
        file_id = tenant.client.files.create(file=("a", b"{}"), purpose="batch").id
        assert submit(tenant, file_id) == (200, None)
        wait_for(lambda: tenant.http.get("/readyz").status_code == 200)

        began = time.monotonic()
        bring_back = lose(own_postgres)
        lost = time.monotonic()
        response = tenant.http.get("/readyz")
        seconds = time.monotonic() - lost
        assert response.status_code == 503, response.text
        assert seconds < GENEROUS_SECONDS
        print(f"{lose.__name__} took {lost - began:.2f} s; not ready {seconds:.2f} s after it: {error_of(response)}")
        answers = [submit(tenant, file_id) for _ in range(2)]
        assert answers == [(503, "2")] * 2

        bring_back()
        wait_for(lambda: tenant.http.get("/readyz").status_code == 200)
        wait_for(lambda: submit(tenant, file_id) == (200, None))
        ids = [batch.id for batch in tenant.client.batches.list()]

    # A server that hung may have done what was asked before, as its answer said; each is whole.
    assert len(ids) >= 2
    if lose is not freeze:
        assert len(ids) == 2
    assert sorted(ids) == sorted(row[0] for row in sql(get_engine(), "SELECT id FROM batches"))
    assert audit().violations == []
