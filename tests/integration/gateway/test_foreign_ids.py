"""Two tenants, and two projects of one, try every route with each other's ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Final

import pytest
from running_gateways import Tenant, error_of
from seeds import sql
from sqlalchemy import Engine, select

from pipeline.gateway import create_app
from pipeline.ids import new_id
from pipeline.jobs.quoting import request_quote
from pipeline.settings import PREFIX, get_settings
from pipeline.tables import (
    ApiKey,
    Batch,
    BatchStatus,
    File,
    Invoice,
    InvoiceStatus,
    OnInvalid,
    ServiceClass,
    WebhookDelivery,
)
from pipeline.tables.session import transaction
from pipeline.tenancy.keys import Principal
from pipeline.webhooks.endpoints import create_endpoint
from pipeline.webhooks.events import EventType, add_event

COMPLETIONS = "/v1/completions"
#: Refused before anything is sent.
CLOSED = "https://127.0.0.1/"


@dataclass
class Things:
    """What the owner has, by the names that parameters have in paths and bodies."""

    owner: Tenant
    ids: dict[str, str] = field(default_factory=dict)

    def make(self) -> Things:
        file_id = self.owner.client.files.create(file=("in.jsonl", b"{}\n"), purpose="batch").id
        batch = self.owner.client.batches.create(input_file_id=file_id, endpoint=COMPLETIONS, completion_window="24h")
        with transaction() as session:
            quote = request_quote(
                session,
                tenant_id=self.owner.id,
                api_key_id=session.get_one(Batch, batch.id).api_key_id,
                project_id=session.get_one(Batch, batch.id).project_id,
                input_file=session.get_one(File, file_id),
                endpoint=COMPLETIONS,
                on_invalid=OnInvalid.FAIL,
                service_class=ServiceClass.STANDARD,
            )
            invoice = Invoice(
                id=new_id("inv"),
                tenant_id=self.owner.id,
                currency="USD",
                month_start=date(2020, 1, 1),
                status=InvoiceStatus.VOID,
                customer={"name": "a"},
                supplier={"name": "b"},
            )
            session.add(invoice)
            key = session.get_one(ApiKey, session.get_one(Batch, batch.id).api_key_id)
            caller = Principal(tenant_id=self.owner.id, api_key_id=key.id, project_id=key.project_id)
            endpoint = create_endpoint(session, caller, name="n", url=CLOSED, event_types=list(EventType))
            add_event(session, batch.id, BatchStatus.FAILED)
            of_endpoint = WebhookDelivery.endpoint_id == endpoint.id
            delivery_id = session.execute(select(WebhookDelivery.id).where(of_endpoint)).scalar_one()
        self.ids = {
            "file_id": file_id,
            "input_file_id": file_id,
            "batch_id": batch.id,
            "quote_id": quote.id,
            "invoice_id": invoice.id,
            "webhook_endpoint_id": endpoint.id,
            "delivery_id": delivery_id,
        }
        return self


#: The same for all tenants, and what stands for it.
PUBLIC: Final = {"model": "tiny", "form": "json"}
#: Of the whole tenant: a key of a project is refused before anything is looked for.
WHOLE: Final = "/v1/organization/invoices"
#: What a body has beside the id that is tried.
BODIES: Final[Mapping[str, Mapping[str, Any]]] = {
    "/v1/batches": {"input_file_id": "file-none", "endpoint": COMPLETIONS, "completion_window": "24h"},
    "/v1/batches/quote": {"endpoint": COMPLETIONS},
}
#: What routes with an id in their path ask for in a body.
OWN_BODIES: Final[Mapping[str, Mapping[str, Any]]] = {
    "/v1/webhook_endpoints/{webhook_endpoint_id}/test": {"event_type": "batch.failed"},
}
MISSING: Final = "none"
#: What reports of a time ask for; others let it pass.
START: Final = {"start_time": 0, "limit": 1}

SCHEMA: Final = create_app().openapi()


def operations() -> list[tuple[str, str, Mapping[str, Any]]]:
    return [(method.upper(), path, item) for path, found in SCHEMA["paths"].items() for method, item in found.items()]


def of_one_object() -> list[tuple[str, str]]:
    """Routes with an id in their path; those that change something last."""
    found = [(method, path) for method, path, _ in operations() if set(re.findall(r"{(\w+)}", path)) - set(PUBLIC)]
    return sorted(found, key=lambda route: ("GET", "POST", "DELETE").index(route[0]))


def ids_in_bodies() -> list[tuple[str, str]]:
    """Path and name of every field of a JSON body that holds an id."""
    found = []
    for method, path, item in operations():
        content = item.get("requestBody", {}).get("content", {}).get("application/json", {})
        reference = content.get("schema", {}).get("$ref")
        if reference is None:
            continue
        properties = SCHEMA["components"]["schemas"][reference.rsplit("/", 1)[1]]["properties"]
        assert method == "POST"
        found += [(path, name) for name in properties if name.endswith("_id")]
    return found


def cursors() -> list[str]:
    return [
        path
        for method, path, item in operations()
        if method == "GET" and any(one["name"] == "after" for one in item.get("parameters", []))
    ]


def shown(error: Mapping[str, str | None], given: str) -> Mapping[str, str | None]:
    return {**error, "message": str(error["message"]).replace(given, MISSING)}


@pytest.fixture(autouse=True)
def signing_key(settings_env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings_env.setenv(f"{PREFIX}SIGNING_KEY_FILE", str(tmp_path / "signing_key.pem"))
    get_settings.cache_clear()


@pytest.fixture
def owner(join: Callable[..., Tenant]) -> Things:
    return Things(join("acme", project="search")).make()


@pytest.fixture
def strangers(join: Callable[..., Tenant], owner: Things) -> list[Tenant]:
    """Each has things of its own, and neither may see the owner's."""
    found = [join("globex"), join("acme", project="mail"), join("acme", project="default")]
    for stranger in found:
        Things(stranger).make()
    return found


def test_what_is_anothers_is_answered_as_what_is_not_there(
    owner: Things, strangers: list[Tenant], database: Engine, subtests: pytest.Subtests
) -> None:
    assert len(of_one_object()) >= 5
    for method, path in of_one_object():
        names = [name for name in re.findall(r"{(\w+)}", path) if name not in PUBLIC]
        uncovered = [name for name in names if name not in owner.ids]
        assert not uncovered, f"{method} {path}: make one in Things, so that a stranger tries its id"
        for number, stranger in enumerate(strangers):
            with subtests.test(method=method, path=path, stranger=number):
                body = OWN_BODIES.get(path)
                theirs = stranger.http.request(method, path.format(**PUBLIC, **owner.ids), json=body)
                absent = path.format(**PUBLIC, **dict.fromkeys(names, MISSING))
                nothing = stranger.http.request(method, absent, json=body)
                if path.startswith(WHOLE) and stranger is not strangers[0]:
                    assert theirs.status_code == nothing.status_code == 403
                    continue
                assert theirs.status_code == nothing.status_code == 404
                error = error_of(theirs)
                for name in names:
                    error = shown(error, owner.ids[name])  # type: ignore[assignment]
                assert error == error_of(nothing)
    assert sql(database, "SELECT count(*) FROM files WHERE deleted_at IS NOT NULL") == [(0,)]
    assert sql(database, "SELECT count(*) FROM batches WHERE cancelling_at IS NOT NULL") == [(0,)]
    assert sql(database, "SELECT count(*) FROM batches WHERE paused_at IS NOT NULL") == [(0,)]
    assert sql(database, "SELECT count(*) FROM webhook_endpoints WHERE updated_at <> created_at") == [(0,)]


def test_an_owner_reaches_what_strangers_do_not(
    owner: Things, join: Callable[..., Tenant], subtests: pytest.Subtests
) -> None:
    """Else the test above could be passed by ids that are nobody's."""
    whole = join("acme")
    for method, path in of_one_object():
        for caller in (owner.owner, whole):
            with subtests.test(method=method, path=path):
                if method != "DELETE" or caller is owner.owner:
                    allowed = (403,) if path.startswith(WHOLE) and caller is owner.owner else (200, 409)
                    answer = caller.http.request(
                        method,
                        path.format(**PUBLIC, **owner.ids),
                        json=OWN_BODIES.get(path),
                        params={"timeout": 0} if path.endswith("/events") else {},  # else it waits for the batch
                    )
                    assert answer.status_code in allowed


def test_a_body_can_not_name_what_is_anothers(
    owner: Things, strangers: list[Tenant], database: Engine, subtests: pytest.Subtests
) -> None:
    before = sql(database, "SELECT count(*) FROM batches")
    assert ids_in_bodies()
    for path, name in ids_in_bodies():
        assert name in owner.ids, f"{path}: make one in Things, so that a stranger tries its id as {name}"
        assert path in BODIES, f"{path}: say what its body has beside {name}"
        for number, stranger in enumerate(strangers):
            with subtests.test(path=path, name=name, stranger=number):
                theirs = stranger.http.post(path, json={**BODIES[path], name: owner.ids[name]})
                nothing = stranger.http.post(path, json={**BODIES[path], name: MISSING})
                assert theirs.status_code == nothing.status_code == 400
                assert shown(error_of(theirs), owner.ids[name]) == error_of(nothing)
    assert sql(database, "SELECT count(*) FROM batches") == before


def test_a_page_can_not_begin_after_what_is_anothers(
    owner: Things, strangers: list[Tenant], subtests: pytest.Subtests
) -> None:
    assert len(cursors()) >= 2
    for path in cursors():
        for stranger in strangers:
            for given in owner.ids.values():
                with subtests.test(path=path, given=given):
                    response = stranger.http.get(path, params={"after": given})
                    if path.startswith(WHOLE) and stranger is not strangers[0]:
                        assert response.status_code == 403
                        continue
                    assert response.status_code == 400
                    assert error_of(response)["param"] == "after"


def test_a_list_shows_nothing_of_anothers(
    owner: Things, strangers: list[Tenant], join: Callable[..., Tenant], subtests: pytest.Subtests
) -> None:
    lists = [path for method, path, _ in operations() if method == "GET" and "{" not in path]
    assert {"/v1/files", "/v1/batches"} <= set(lists)
    for path in lists:
        for number, stranger in enumerate(strangers):
            with subtests.test(path=path, stranger=number):
                text = stranger.http.get(path, params=START).text
                assert not [name for name in owner.ids.values() if name in text]
    for caller in (owner.owner, join("acme")):
        assert owner.ids["file_id"] in [file.id for file in caller.client.files.list()]
        assert owner.ids["batch_id"] in [batch.id for batch in caller.client.batches.list()]
    assert len(list(owner.owner.client.files.list())) == 1
    assert len(list(join("acme").client.files.list())) == 3


def test_what_has_no_project_is_of_the_default_one(owner: Things, strangers: list[Tenant], database: Engine) -> None:
    """As processes of the version before leave it."""
    sql(database, "UPDATE files SET project_id = NULL")
    sql(database, "UPDATE batches SET project_id = NULL")
    globex, mail, default = strangers
    for path in ("/v1/files/{file_id}", "/v1/batches/{batch_id}", "/v1/batches/{batch_id}/explain"):
        assert default.http.get(path.format(**owner.ids)).status_code == 200
        for stranger in (globex, mail, owner.owner):
            assert stranger.http.get(path.format(**owner.ids)).status_code == 404
