"""One error shape, whatever goes wrong, and an answer in any case."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import openai
import pytest
from running_gateways import Tenant, error_of, new_tenant, postgres_processes, serve, wait_for
from sqlalchemy import Engine

from pipeline.embedded import EmbeddedPostgres
from pipeline.gateway import create_app
from pipeline.gateway.middleware import MAX_JSON_BYTES
from pipeline.settings import get_settings


def test_an_unknown_address_is_not_found(acme: Tenant) -> None:
    for path in ("/", "/v1", "/v1/nowhere", "/v1/files/", "/docs", "/v1/batches/a/b/c"):
        response = acme.http.get(path)
        error = error_of(response)
        assert (response.status_code, error["type"]) == (404, "invalid_request_error")
        assert error["message"] == f"Invalid URL (GET {path})"


def test_a_method_that_an_address_does_not_have_is_told(acme: Tenant) -> None:
    response = acme.http.put("/v1/files")
    assert (response.status_code, error_of(response)["code"]) == (405, "method_not_supported")
    assert response.headers["allow"]


def test_a_body_that_is_too_long_is_refused_whether_or_not_it_says_so(acme: Tenant) -> None:
    def endless() -> Iterator[bytes]:
        yield b'{"a": "'
        for _ in range(30):
            yield b"x" * 100_000

    for content in (b" " * (MAX_JSON_BYTES + 1), endless()):
        response = acme.http.post("/v1/batches", content=content, headers={"content-type": "application/json"})
        assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large")


def test_a_nul_in_the_address_is_refused(acme: Tenant) -> None:
    for path in ("/v1/files/%00", "/v1/batches?after=%00", "/v1/models/a%00b", "/v1/files?purpose=%00"):
        response = acme.http.get(path)
        assert (response.status_code, error_of(response)["code"]) == (400, "invalid_url")


def test_a_request_has_an_id_that_the_caller_may_choose(acme: Tenant) -> None:
    assert acme.client.models.with_raw_response.list().headers["x-request-id"].startswith("req_")
    assert acme.http.get("/healthz", headers={"x-request-id": "mine-7"}).headers["x-request-id"] == "mine-7"
    forged = acme.http.get("/healthz", headers={"x-request-id": "a b; c"}).headers["x-request-id"]
    assert forged.startswith("req_")


def test_a_crash_is_a_500_that_says_nothing_and_a_log_that_says_it(
    acme: Tenant, log_path: Path, settings_env: pytest.MonkeyPatch
) -> None:
    def crash(*arguments: object, **options: object) -> None:
        raise RuntimeError("a secret detail")

    settings_env.setattr("pipeline.gateway.files.list_files", crash)

    response = acme.http.get("/v1/files")

    error = error_of(response)
    assert (response.status_code, error["type"], error["code"]) == (500, "server_error", "internal_error")
    assert "secret" not in response.text
    logged = [json.loads(line) for line in log_path.read_text().splitlines()]
    [crashed] = [line for line in logged if line["event"] == "unexpected error"]
    assert crashed["request_id"] == response.headers["x-request-id"]
    assert "a secret detail" in crashed["exception"]


def test_the_schema_names_every_operation_once_and_its_errors(acme: Tenant) -> None:
    schema = acme.http.get("/openapi.json").json()
    operations = [operation for item in schema["paths"].values() for operation in item.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    for operation in operations:
        error = operation["responses"]["default"]["content"]["application/json"]["schema"]
        assert error == {"$ref": "#/components/schemas/ErrorResponse"}
        assert "422" not in operation["responses"]


def readiness(tenant: Tenant) -> tuple[int, object]:
    """What `/readyz` says. On a busy host a check may take too long, which it says then."""
    response = tenant.http.get("/readyz")
    return response.status_code, response.json() if response.is_success else error_of(response)["message"]


def test_readiness_needs_postgresql_and_reports_redis(
    acme: Tenant, set_before_start: Callable[[str, object], None]
) -> None:
    assert acme.http.get("/healthz").json() == {"status": "ok"}
    wait_for(lambda: readiness(acme) == (200, {"status": "ready", "postgresql": "ok", "redis": "ok"}))

    set_before_start("REDIS_URL", "redis://127.0.0.1:1/0")
    wait_for(lambda: readiness(acme) == (200, {"status": "ready", "postgresql": "ok", "redis": "not reachable"}))

    set_before_start("DATABASE_URL", "postgresql+psycopg://nobody@127.0.0.1:1/none")
    wait_for(lambda: readiness(acme) == (503, "PostgreSQL: not reachable."))
    assert acme.http.get("/healthz").status_code == 200


def test_readiness_needs_the_schema_of_this_version(
    acme: Tenant, postgres_server: EmbeddedPostgres, set_before_start: Callable[[str, object], None]
) -> None:
    set_before_start("DATABASE_URL", postgres_server.create_database("empty"))

    def lacks_the_schema() -> bool:
        status, message = readiness(acme)
        return status == 503 and "schema missing" in str(message) and "ryzanstein migrate" in str(message)

    wait_for(lacks_the_schema)


def routes(tenant: Tenant) -> Iterator[httpx2.Response]:
    """The answers of a route of each kind."""
    for method, path in [
        ("GET", "/v1/files"),
        ("GET", "/v1/files/file-x/content"),
        ("DELETE", "/v1/files/file-x"),
        ("GET", "/v1/batches/batch_x"),
        ("POST", "/v1/batches/batch_x/cancel"),
        ("GET", "/v1/models"),
        ("GET", "/readyz"),
    ]:
        yield tenant.http.request(method, path)
    yield tenant.http.post("/v1/batches", json={})
    yield tenant.http.post("/v1/files", files={"file": ("a", b"{}")}, data={"purpose": "batch"})


def check_unavailable(response: httpx2.Response) -> None:
    error = error_of(response)
    assert (response.status_code, error["type"], error["code"]) == (503, "server_error", "service_unavailable")
    assert int(response.headers["retry-after"]) > 0


def test_without_postgresql_every_route_is_a_503_until_it_is_back(own_postgres: EmbeddedPostgres) -> None:
    with serve() as address:
        tenant = new_tenant(address, "acme")
        file_id = tenant.client.files.create(file=("a", b"{}"), purpose="batch").id
        own_postgres.stop()

        for response in routes(tenant):
            check_unavailable(response)
        assert tenant.http.get("/healthz").status_code == 200

        own_postgres.start()
        wait_for(lambda: tenant.http.get("/readyz").status_code == 200)
        assert [file.id for file in tenant.client.files.list()] == [file_id]
        # What was refused left no blob behind.
        assert len([path for path in blob_folder().rglob("*") if path.is_file()]) == 1


def blob_folder() -> Path:
    return Path(get_settings().storage_url.removeprefix("file://"))


def test_a_postgresql_that_hangs_makes_no_client_hang(own_postgres: EmbeddedPostgres) -> None:
    with serve(create_app(answer_seconds=0.5, upload_answer_seconds=0.5)) as address:
        tenant = new_tenant(address, "acme")
        wait_for(lambda: tenant.http.get("/v1/models").status_code == 200)
        assert own_postgres.process is not None
        children = postgres_processes(own_postgres)
        for pid in children:
            os.kill(pid, signal.SIGSTOP)
        try:
            for response in routes(tenant):
                check_unavailable(response)
            assert tenant.http.get("/healthz").status_code == 200
        finally:
            for pid in children:
                os.kill(pid, signal.SIGCONT)
        wait_for(lambda: tenant.http.get("/v1/models").status_code == 200)


def test_a_redis_that_is_away_delays_no_batch(
    database: Engine, log_path: Path, set_before_start: Callable[[str, object], None]
) -> None:
    set_before_start("REDIS_URL", "redis://127.0.0.1:1/0")
    with serve() as address:
        tenant = new_tenant(address, "acme")
        file_id = tenant.client.files.create(file=("a", b"{}"), purpose="batch").id
        batch = tenant.client.batches.create(input_file_id=file_id, endpoint="/v1/completions", completion_window="24h")
        assert tenant.client.batches.cancel(batch.id).status == "cancelling"


def test_a_lost_connection_in_the_middle_of_a_download_is_no_complete_file(
    acme: Tenant, settings_env: pytest.MonkeyPatch
) -> None:
    def broken(file: object) -> Iterator[bytes]:
        yield b"x" * 10
        raise RuntimeError("the disk is gone")

    file_id = acme.client.files.create(file=("a", b"x" * 100), purpose="batch").id
    settings_env.setattr("pipeline.gateway.files.read_content", broken)

    with pytest.raises((openai.APIConnectionError, httpx2.RemoteProtocolError)):
        acme.client.files.content(file_id)
