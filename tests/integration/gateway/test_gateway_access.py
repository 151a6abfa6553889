"""Keys, and what a tenant can see: only what is its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from running_gateways import Tenant, error_of
from sqlalchemy import func, select, text, update

from pipeline.processes import wait_until
from pipeline.tables import ApiKey, Batch, File, ServedModel
from pipeline.tables.session import transaction
from pipeline.tenancy.keys import revoke_key

#: Every route that needs a key, with `{file}` and `{batch}` where an id goes.
ROUTES = [
    ("POST", "/v1/files"),
    ("GET", "/v1/files"),
    ("GET", "/v1/files/{file}"),
    ("GET", "/v1/files/{file}/content"),
    ("DELETE", "/v1/files/{file}"),
    ("POST", "/v1/batches"),
    ("GET", "/v1/batches"),
    ("GET", "/v1/batches/{batch}"),
    ("POST", "/v1/batches/{batch}/cancel"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
]
OF_ONE_OBJECT = [route for route in ROUTES if "{file}" in route[1] or "{batch}" in route[1]]


def test_every_route_is_in_the_list(acme: Tenant) -> None:
    schema = acme.http.get("/openapi.json").json()
    routes = {(method.upper(), path) for path, item in schema["paths"].items() for method in item}
    named = {(method, path.replace("{file_id}", "{file}").replace("{batch_id}", "{batch}")) for method, path in routes}
    assert named == {*ROUTES, ("GET", "/healthz"), ("GET", "/readyz")}


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


def test_every_route_needs_a_key(acme: Tenant, subtests: pytest.Subtests) -> None:
    for method, path in ROUTES:
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


def test_what_is_another_tenants_is_answered_as_what_is_not_there(
    acme: Tenant, globex: Tenant, subtests: pytest.Subtests
) -> None:
    things = make_things(acme)
    for method, path in OF_ONE_OBJECT:
        with subtests.test(method=method, path=path):
            theirs = globex.http.request(method, path.format(**things))
            nothing = globex.http.request(method, path.format(file="file-none", batch="batch_none"))

            assert theirs.status_code == nothing.status_code == 404
            shown = error_of(theirs)
            for kind, missing in (("file", "file-none"), ("batch", "batch_none")):
                shown["message"] = str(shown["message"]).replace(things[kind], missing)
            assert shown == error_of(nothing)
    with transaction() as session:
        assert session.execute(select(File.deleted_at)).scalars().all() == [None]
        assert session.execute(select(Batch.cancelling_at)).scalars().all() == [None]


def test_lists_show_only_what_is_the_callers(acme: Tenant, globex: Tenant) -> None:
    mine, theirs = make_things(acme), make_things(globex)
    assert [file.id for file in acme.client.files.list()] == [mine["file"]]
    assert [batch.id for batch in globex.client.batches.list()] == [theirs["batch"]]
    for path, cursor in (("/v1/files", theirs["file"]), ("/v1/batches", theirs["batch"])):
        response = acme.http.get(path, params={"after": cursor})
        assert (response.status_code, error_of(response)["param"]) == (400, "after")


def test_a_batch_can_not_read_another_tenants_file(acme: Tenant, globex: Tenant) -> None:
    body = {"input_file_id": make_things(acme)["file"], "endpoint": "/v1/completions", "completion_window": "24h"}
    theirs = globex.http.post("/v1/batches", json=body)
    nothing = globex.http.post("/v1/batches", json=body | {"input_file_id": "file-none"})
    assert theirs.status_code == nothing.status_code == 400
    assert str(error_of(theirs)["message"]).replace(body["input_file_id"], "file-none") == error_of(nothing)["message"]


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
