"""Keys in the console: what is shown of them, and that none is made with more rights than one's own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import httpx2
from console_pages import Person, sign_in, text_of
from running_gateways import Tenant
from seeds import sql
from sqlalchemy import Engine

_SECRET = re.compile(r"rz_[0-9a-f]{12}_[0-9a-f]{48}")


def secret_in(answer: httpx2.Response) -> str:
    found = _SECRET.search(answer.text)
    assert found, text_of(answer)
    return found[0]


def key_id(database: Engine, name: str) -> str:
    [[found]] = sql(database, "SELECT id FROM api_keys WHERE name = :name ORDER BY created_at DESC LIMIT 1", name=name)
    return str(found)


def test_a_key_is_shown_once_works_and_is_logged_nowhere(
    acme: Tenant, enter: Callable[..., Person], address: str, log_path: Path
) -> None:
    person = enter(acme)
    answer = person.post(
        "/console/keys", name="nightly", project="", life="30d", rights="some", scope_batches_read="on"
    )
    secret = secret_in(answer)
    assert answer.headers["cache-control"] == "no-store"
    page = person.page("/console/keys")
    assert "nightly" in page
    assert "batches:read" in page
    assert not _SECRET.search(person.get("/console/keys").text)
    assert secret not in log_path.read_text()
    new = sign_in(address, secret)
    assert new.get("/console/batches").status_code == 200
    assert new.get("/console/usage").status_code == 403


def test_a_key_with_few_rights_makes_none_with_more(acme: Tenant, enter: Callable[..., Person]) -> None:
    person = enter("acme", scopes=["keys:read", "keys:write", "batches:read"])
    for more in ({"rights": "all"}, {"rights": "some", "scope_batches_write": "on"}):
        answer = person.post("/console/keys", name="more", life="30d", **more)
        assert answer.status_code == 400
        assert "Your key" in text_of(answer)
        assert not _SECRET.search(answer.text)
    assert "more" not in person.page("/console/keys").split("Make a key")[0].split()
    secret_in(person.post("/console/keys", name="same", life="30d", rights="some", scope_batches_read="on"))


def test_rotating_and_revoking(database: Engine, acme: Tenant, enter: Callable[..., Person], address: str) -> None:
    person = enter(acme)
    old = secret_in(person.post("/console/keys", name="nightly", life="never", rights="all"))
    new = secret_in(person.post(f"/console/keys/{key_id(database, 'nightly')}/rotate", grace="0m"))
    assert new != old
    bearer = {"authorization": f"Bearer {new}"}
    assert httpx2.get(f"{address}/v1/models", headers={"authorization": f"Bearer {old}"}).status_code == 401
    assert httpx2.get(f"{address}/v1/models", headers=bearer).status_code == 200
    assert "expired replaced" in person.page("/console/keys")
    assert person.post(f"/console/keys/{key_id(database, 'nightly')}/revoke").status_code == 303
    assert httpx2.get(f"{address}/v1/models", headers=bearer).status_code == 401


def test_who_revokes_the_own_key_is_signed_out(database: Engine, enter: Callable[..., Person]) -> None:
    person = enter("acme")
    assert person.post(f"/console/keys/{key_id(database, 'tests')}/revoke").status_code == 303
    assert person.get("/console/keys").headers["location"].startswith("/console/sign-in")


def test_keys_of_others_are_not_there(database: Engine, acme: Tenant, enter: Callable[..., Person]) -> None:
    theirs = key_id(database, "tests")
    for other in (enter("globex"), enter("acme", project="search")):
        assert theirs not in other.page("/console/keys")
        assert other.get(f"/console/keys?after={theirs}").status_code == 404
        assert other.post(f"/console/keys/{theirs}/revoke").status_code == 404
        assert other.post(f"/console/keys/{theirs}/rotate", grace="1h").status_code == 404
    assert acme.http.get("/v1/models").status_code == 200


def test_reading_keys_and_making_them_are_rights_of_their_own(enter: Callable[..., Person]) -> None:
    assert enter("acme", scopes=["batches:read"]).get("/console/keys").status_code == 403
    reader = enter("acme", scopes=["keys:read", "batches:read"])
    assert "Make a key" not in reader.page("/console/keys")
    assert reader.post("/console/keys", name="x", life="30d", rights="some", scope_keys_read="on").status_code == 403


def test_a_form_without_its_token_does_nothing(database: Engine, enter: Callable[..., Person]) -> None:
    person = enter("acme")
    answer = person.http.post("/console/keys", data={"name": "forged", "life": "never", "rights": "all"})
    assert answer.status_code == 403
    assert sql(database, "SELECT id FROM api_keys WHERE name = 'forged'") == []


def test_many_keys_are_paged_and_what_is_missing_is_said(database: Engine, enter: Callable[..., Person]) -> None:
    person = enter("acme")
    sql(
        database,
        "INSERT INTO api_keys (id, tenant_id, name, short_id, secret_hash, created_at)"
        " SELECT 'key_' || n, tenant_id, 'many ' || n || '.', 'short_' || n, '', now() - n * interval '1 minute'"
        " FROM api_keys, generate_series(1, 150) n WHERE name = 'tests'",
    )
    first = person.get("/console/keys").text
    assert "many 99." in first
    assert "many 100." not in first
    found = re.search(r'href="(/console/keys\?after=[^"]+)"', first)
    assert found
    assert "many 150." in person.page(found[1])
    for given, said in (({"name": " "}, "name"), ({"name": "x", "life": "1s"}, "1s")):
        answer = person.post("/console/keys", **{"life": "30d", "rights": "all", **given})
        assert answer.status_code == 400
        assert said in text_of(answer)
