"""Every route of the console: which scope it asks for, what it says of other people's things, and bad input."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import httpx2
import pytest
from console_pages import Person, text_of
from fastapi.routing import APIRoute
from running_gateways import Tenant
from seeds import sql
from sqlalchemy import Engine, select
from starlette.datastructures import State
from starlette.routing import BaseRoute

from pipeline.console import create_console
from pipeline.jobs.quoting import request_quote
from pipeline.tables import Batch, File, OnInvalid, ServiceClass
from pipeline.tables.session import transaction
from pipeline.tenancy.scopes import Scope

#: No scope is enough: they are for operators.
OPERATOR: Final = frozenset({"an operator's key"})
#: What a key must have; of several, all.
SCOPES: Final[dict[tuple[str, str], frozenset[str]]] = {
    ("GET", "/"): frozenset(),
    ("POST", "/sign-out"): frozenset(),
    ("GET", "/batches"): frozenset({Scope.BATCHES_READ}),
    ("GET", "/batches/{batch_id}"): frozenset({Scope.BATCHES_READ}),
    ("GET", "/batches/{batch_id}/requests"): frozenset({Scope.BATCHES_READ}),
    ("GET", "/batches/{batch_id}/requests/{line}"): frozenset({Scope.BATCHES_READ, Scope.FILES_READ}),
    ("GET", "/batches/{batch_id}/answers"): frozenset({Scope.BATCHES_READ, Scope.FILES_READ}),
    ("GET", "/batches/{batch_id}/errors"): frozenset({Scope.BATCHES_READ}),
    ("GET", "/batches/{batch_id}/files/{which}"): frozenset({Scope.FILES_READ}),
    ("POST", "/batches/{batch_id}/cancel"): frozenset({Scope.BATCHES_WRITE}),
    ("POST", "/batches/{batch_id}/pause"): frozenset({Scope.BATCHES_WRITE}),
    ("POST", "/batches/{batch_id}/resume"): frozenset({Scope.BATCHES_WRITE}),
    ("POST", "/batches/{batch_id}/retry"): frozenset({Scope.BATCHES_WRITE}),
    ("GET", "/upload"): frozenset({Scope.BATCHES_WRITE, Scope.FILES_WRITE}),
    ("POST", "/upload"): frozenset({Scope.BATCHES_WRITE, Scope.FILES_WRITE}),
    ("GET", "/quotes/{quote_id}"): frozenset({Scope.BATCHES_READ}),
    ("POST", "/quotes"): frozenset({Scope.BATCHES_WRITE}),
    ("POST", "/quotes/{quote_id}/batch"): frozenset({Scope.BATCHES_WRITE}),
    ("GET", "/usage"): frozenset({Scope.USAGE_READ}),
    ("GET", "/usage.csv"): frozenset({Scope.USAGE_READ}),
    ("GET", "/costs"): frozenset({Scope.USAGE_READ}),
    ("GET", "/invoices/{invoice_id}/{form}"): frozenset({Scope.INVOICES_READ}),
    ("GET", "/budgets"): frozenset({Scope.USAGE_READ}),
    ("POST", "/budgets"): OPERATOR,
    ("POST", "/budgets/{budget_id}/remove"): OPERATOR,
    ("GET", "/keys"): frozenset({"keys:read"}),
    ("POST", "/keys"): frozenset({"keys:write"}),
    ("POST", "/keys/{key_id}/rotate"): frozenset({"keys:write"}),
    ("POST", "/keys/{key_id}/revoke"): frozenset({"keys:write"}),
    ("GET", "/groups"): frozenset(),
    ("POST", "/groups/{group_id}/drain"): OPERATOR,
    ("POST", "/groups/{group_id}/resume"): OPERATOR,
    ("GET", "/queue"): frozenset(),
}
#: For who is not signed in as well.
OPEN: Final = {("GET", "/sign-in"), ("POST", "/sign-in"), ("GET", "/static/{digest}/{name:path}")}
#: For parameters that are no ids of things that somebody owns.
OTHERS: Final = {
    "line": "1",
    "which": "input",
    "form": "json",
    "group_id": "none",
    "key_id": "none",
    "budget_id": "none",
}
#: What no page expects.
NASTY: Final = ("", "-1", "9" * 30, '"><script>', "\ud7ff\u202e", "a" * 5000, "%2e%2e")


def routes() -> dict[tuple[str, str], APIRoute]:
    """All of them, those too that no schema would describe."""
    found: list[BaseRoute] = []
    for route in create_console(State()).routes:
        router = getattr(route, "original_router", None)  # what FastAPI keeps of a router that was included
        found += [route] if router is None else router.routes
    assert all(isinstance(route, APIRoute) for route in found)
    return {(method, route.path): route for route in found if isinstance(route, APIRoute) for method in route.methods}


def filled(path: str, **ids: str) -> str:
    return "/console" + re.sub(r"{(\w+)(:\w+)?}", lambda name: {**OTHERS, **ids}.get(name[1], "none"), path)


@pytest.fixture
def ids(join: Callable[..., Tenant]) -> dict[str, str]:
    """What one project of acme has."""
    owner = join("acme", project="search")
    file_id = owner.client.files.create(file=("in.jsonl", b"{}\n"), purpose="batch").id
    batch = owner.client.batches.create(input_file_id=file_id, endpoint="/v1/completions", completion_window="24h")
    with transaction() as session:
        made = session.execute(select(Batch).where(Batch.id == batch.id)).scalar_one()
        quote = request_quote(
            session,
            tenant_id=owner.id,
            api_key_id=made.api_key_id,
            project_id=made.project_id,
            input_file=session.get_one(File, file_id),
            endpoint="/v1/completions",
            on_invalid=OnInvalid.FAIL,
            service_class=ServiceClass.STANDARD,
        )
    return {"batch_id": batch.id, "quote_id": quote.id, "input_file_id": file_id}


def test_every_route_asks_for_its_scopes_and_no_other(enter: Callable[..., Person], subtests: pytest.Subtests) -> None:
    found = set(routes()) - OPEN
    assert found <= set(SCOPES), "say here which scope a new route asks for"
    people: dict[frozenset[str], tuple[Person, str]] = {}

    def status(method: str, path: str, scopes: frozenset[str]) -> httpx2.Response:
        if scopes not in people:
            person = enter("acme", scopes=sorted(scopes))
            people[scopes] = (person, person.token)
        person, token = people[scopes]
        return person.http.request(method, filled(path), headers={"x-csrf-token": token} if method == "POST" else {})

    every = frozenset(scope.value for scope in Scope)
    for method, path in sorted(found - {("POST", "/sign-out")}):
        wanted = SCOPES[method, path]
        with subtests.test(method=method, path=path):
            if wanted == OPERATOR:
                assert status(method, path, every).status_code == 403
                continue
            assert status(method, path, wanted or frozenset({Scope.USAGE_READ})).status_code != 403
            for scope in wanted:
                refused = status(method, path, every - {scope})
                assert refused.status_code == 403
                assert scope in text_of(refused)


def test_nothing_is_for_who_is_not_signed_in(address: str, subtests: pytest.Subtests) -> None:
    with httpx2.Client(base_url=address) as nobody:
        for method, path in sorted(set(routes()) - OPEN - {("GET", "/")}):
            with subtests.test(method=method, path=path):
                answer = nobody.request(method, filled(path))
                assert answer.status_code == 303
                assert answer.headers["location"].startswith("/console/sign-in")


def test_no_form_is_taken_without_its_token(enter: Callable[..., Person], subtests: pytest.Subtests) -> None:
    person = enter("acme")
    for method, path in sorted(set(routes()) - OPEN):
        if method != "GET":
            with subtests.test(path=path):
                assert person.http.request(method, filled(path)).status_code == 403


def test_what_is_anothers_is_shown_as_what_is_not_there(
    ids: dict[str, str], enter: Callable[..., Person], database: Engine, subtests: pytest.Subtests
) -> None:
    strangers = [enter("globex"), enter("acme", project="mail"), enter("acme", project="default")]
    strangers.append(enter("globex", is_operator=True))
    owner = enter("acme", project="search")
    of_one = [key for key in sorted(routes()) if set(re.findall(r"{(\w+)", key[1])) & set(ids)]
    assert len(of_one) >= 10
    for person in strangers:
        headers = {"x-csrf-token": person.token}
        for method, path in of_one:
            with subtests.test(method=method, path=path):
                theirs = person.http.request(method, filled(path, **ids), headers=headers)
                nothing = person.http.request(method, filled(path), headers=headers)
                assert theirs.status_code == nothing.status_code == 404
                said = text_of(theirs)
                for given in ids.values():
                    said = said.replace(given, "none")
                assert said == text_of(nothing)
        given = {"endpoint": "/v1/completions", "input_file_id": ids["input_file_id"]}
        assert person.http.post("/console/quotes", data=given, headers=headers).status_code == 400
        assert person.get(f"/console/batches?after={ids['batch_id']}").status_code == 400
        for path in ("/console/batches", f"/console/batches?search={ids['batch_id']}"):
            assert f"/console/batches/{ids['batch_id']}" not in person.get(path).text
    for method, path in of_one:
        if method == "GET":
            assert owner.get(filled(path, **ids)).status_code in (200, 404 if "{line}" in path else 200)
    assert sql(database, "SELECT count(*) FROM batches WHERE cancelling_at IS NOT NULL OR paused_at IS NOT NULL") == [
        (0,)
    ]
    assert sql(database, "SELECT count(*) FROM batches, quotes") == [(1,)]


def test_bad_input_is_a_page_and_never_a_crash(
    ids: dict[str, str], enter: Callable[..., Person], subtests: pytest.Subtests
) -> None:
    person = enter("acme")
    headers = {"x-csrf-token": person.token}
    for (method, path), route in sorted(routes().items(), key=lambda item: item[0]):
        if (method, path) == ("POST", "/sign-out"):
            continue
        with subtests.test(method=method, path=path):
            names = [param.alias for param in route.dependant.query_params]
            for value in NASTY:
                params = dict.fromkeys(names, value)
                data = {"key": value, **dict.fromkeys(ids, value)} if method == "POST" else None
                answer = person.http.request(method, filled(path, **ids), params=params, headers=headers, data=data)
                assert answer.status_code < 500, (value, text_of(answer))
            if "{" in path:
                answer = person.http.request(
                    method, "/console" + re.sub(r"{\w+(:\w+)?}", "%22%3Cscript%3E", path), headers=headers
                )
                assert answer.status_code < 500
                assert '"<script>' not in answer.text
