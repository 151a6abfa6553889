"""Keys, and what a tenant can see: only what is its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from running_gateways import Tenant, error_of, new_tenant, serve
from sqlalchemy import Engine, func, select, text, update

from pipeline.gateway import create_app
from pipeline.processes import wait_until
from pipeline.tables import ApiKey, ServedModel
from pipeline.tables.session import transaction
from pipeline.tenancy.keys import revoke_key

#: Routes that need no key.
OPEN = [("GET", "/healthz"), ("GET", "/readyz")]


def routes() -> list[tuple[str, str]]:
    """Every route that needs a key, as the description of the API has it."""
    paths = create_app().openapi()["paths"]
    return [route for path, item in paths.items() for method in item if (route := (method.upper(), path)) not in OPEN]


def make_things(tenant: Tenant) -> Mapping[str, str]:
    file = tenant.client.files.create(file=("in.jsonl", b"{}\n"), purpose="batch").id
    batch = tenant.client.batches.create(input_file_id=file, endpoint="/v1/completions", completion_window="24h").id
    return {"file": file, "batch": batch, "model": "tiny"}


WRONG: list[tuple[str | None, str | None]] = [
    (None, None),
    ("", None),
    ("Bearer", None),
    ("Basic cno6eA==", None),
    ("Bearer rz_wrong", "invalid_api_key"),
    ("Bearer rz_0123456789ab_" + "0" * 48, "invalid_api_key"),
]


@pytest.fixture
def patient_acme(
    database: Engine, redis_url: str, log_path: Path, set_before_start: Callable[[str, object], None]
) -> Iterator[Tenant]:
    """Of a gateway that lets an address guess as often as it likes."""
    set_before_start("KEY_FAILURES_PER_MINUTE", 100_000)
    with serve() as address:
        tenant = new_tenant(address, "acme")
        yield tenant
        tenant.client.close()
        tenant.http.close()


def test_every_route_needs_a_key(patient_acme: Tenant, subtests: pytest.Subtests) -> None:
    acme = patient_acme
    for method, path in routes():
        for authorization, code in WRONG:
            with subtests.test(method=method, path=path, authorization=authorization):
                request = acme.http.build_request(method, path)
                del request.headers["authorization"]
                if authorization is not None:
                    request.headers["authorization"] = authorization

                response = acme.http.send(request)

                error = error_of(response)
                assert (response.status_code, error["type"]) == (401, "invalid_request_error")
                assert error["code"] == code
                assert response.headers["www-authenticate"] == "Bearer"


def test_a_revoked_key_is_refused_by_the_next_call(acme: Tenant) -> None:
    acme.client.models.list()
    with transaction() as session:
        revoke_key(session, acme.key)
    response = acme.http.get("/v1/models")
    assert (response.status_code, error_of(response)["code"]) == (401, "invalid_api_key")


def test_the_use_of_a_key_is_remembered(acme: Tenant) -> None:
    acme.client.models.list()
    with transaction() as session:
        is_recent = ApiKey.last_used_at > func.now() - text("interval '1 minute'")
        assert session.execute(select(is_recent)).scalar_one()
        session.execute(update(ApiKey).values(last_used_at=None))
    acme.client.models.list()
    with transaction() as session:
        assert session.execute(select(ApiKey.last_used_at)).scalar_one() is not None


def test_models_are_those_that_groups_have_registered(acme: Tenant) -> None:
    assert acme.client.models.list().data == []
    with transaction() as session:
        session.add(ServedModel(name="tiny", path="/models/tiny", context_length=128))
        session.add(ServedModel(name="org/large", path="/models/large", context_length=128))

    assert [model.id for model in acme.client.models.list()] == ["org/large", "tiny"]
    model = acme.client.models.retrieve("org/large")
    assert (model.id, model.object, model.owned_by) == ("org/large", "model", "ryzanstein")


def test_an_unknown_model_is_not_found(acme: Tenant) -> None:
    for name in ("none", "org/none", "é"):
        response = acme.http.get(f"/v1/models/{name}")
        assert (response.status_code, error_of(response)["code"]) == (404, "model_not_found")


def test_no_key_reaches_a_log(acme: Tenant, log_path: Path) -> None:
    make_things(acme)
    acme.http.get("/v1/files", params={"after": acme.key})
    acme.http.get("/v1/nowhere", headers={"x-request-id": "mine-1"})

    # A request is logged when its answer is out.
    wait_until(lambda: "mine-1" in log_path.read_text(), what="the log line", timeout=30, process=None)
    written = log_path.read_text()

    assert acme.key.rsplit("_", 1)[1] not in written
    last = json.loads(written.splitlines()[-1])
    assert last | {"ms": 0} == {
        "event": "request",
        "request_id": "mine-1",
        "method": "GET",
        "path": "/v1/nowhere",
        "status": 404,
        "ms": 0,
    }
