"""Signing in to the console, staying in, and getting out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from console_pages import Person, sign_in, text_of
from running_gateways import Tenant, serve
from seeds import sql
from sqlalchemy import Engine, text

from pipeline.console.signing_in import BY_ITSELF_HEADER, COOKIE
from pipeline.gateway import create_app
from pipeline.tables.session import transaction
from pipeline.tenancy.keys import authenticate, revoke_key


def test_a_key_opens_a_session_and_is_kept_nowhere(
    acme: Tenant, enter: Callable[..., Person], database: Engine, log_path: Path
) -> None:
    person = enter(acme)
    assert "No batches yet" in person.page("/console/batches")
    secret = acme.key.rsplit("_", 1)[1]
    token = person.http.cookies[COOKIE]
    kept = str(sql(database, "SELECT * FROM console_sessions"))
    assert secret not in token
    assert secret not in kept
    assert token not in kept
    assert secret not in log_path.read_text()
    assert token not in log_path.read_text()


def test_the_cookie_is_for_the_console_alone(address: str, acme: Tenant) -> None:
    response = httpx2.post(f"{address}/console/sign-in", data={"key": acme.key})
    said = response.headers["set-cookie"].lower()
    assert {"httponly", "samesite=lax", "path=/console", "max-age=43200"} <= set(said.split("; "))
    assert "secure" not in said
    behind = {"x-forwarded-proto": "https"}  # as a proxy on the same machine says it
    response = httpx2.post(f"{address}/console/sign-in", data={"key": acme.key}, headers=behind)
    assert "secure" in response.headers["set-cookie"].lower().split("; ")


def test_a_wrong_key_is_refused_and_too_many_are_slowed_down(
    set_before_start: Callable[[str, object], None], request: pytest.FixtureRequest
) -> None:
    set_before_start("KEY_FAILURES_PER_MINUTE", 2)
    address = request.getfixturevalue("address")
    acme: Tenant = request.getfixturevalue("acme")
    answers = [httpx2.post(f"{address}/console/sign-in", data={"key": "rz_no"}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [401, 401, 429]
    assert "This is no key of this service" in text_of(answers[0])
    assert "rz_no" not in answers[0].text
    assert COOKIE not in answers[0].cookies
    assert int(answers[2].headers["retry-after"]) > 0
    assert sign_in(address, acme.key).get("/console/batches").status_code == 200


def test_who_is_not_signed_in_is_sent_to_sign_in_and_back(address: str, acme: Tenant) -> None:
    with httpx2.Client(base_url=address) as client:
        refused = client.get("/console/batches?after=x")
        assert refused.status_code == 303
        assert refused.headers["location"] == "/console/sign-in?next=%2Fconsole%2Fbatches%3Fafter%3Dx"
        client.cookies.set(COOKIE, "forged", path="/console")
        assert "Your session has ended" in text_of(client.get("/console/batches", follow_redirects=True))
        given = {"key": acme.key, "next": "/console/batches?after=x"}
        assert client.post("/console/sign-in", data=given).headers["location"] == given["next"]


def test_signing_in_leads_nowhere_but_into_the_console(address: str, acme: Tenant) -> None:
    for path in (
        "https://evil.example/console/",
        "//evil.example/console/",
        "/v1/files",
        "\\\\evil",
        "/console/\\evil",
        "//[",
    ):
        response = httpx2.post(f"{address}/console/sign-in", data={"key": acme.key, "next": path})
        assert response.headers["location"] == "/console/batches", path


def test_a_session_ends(join: Callable[..., Tenant], enter: Callable[..., Person], database: Engine) -> None:
    def is_over(person: Person, token: str) -> bool:
        person.http.cookies.set(COOKIE, token, path="/console")
        return person.get("/console/batches").status_code == 303

    def begin() -> tuple[Person, str, str]:
        tenant = join("acme")
        person = enter(tenant)
        assert person.get("/console/batches").status_code == 200
        with transaction() as session:
            return person, person.http.cookies[COOKIE], authenticate(session, tenant.key).api_key_id

    person, token, _ = begin()
    assert person.post("/console/sign-out").headers["location"] == "/console/sign-in?out=1"
    assert COOKIE not in person.http.cookies
    assert is_over(person, token), "by signing out"

    person, token, key_id = begin()
    with transaction() as session:
        revoke_key(session, key_id)
    assert is_over(person, token), "with its key"

    person, token, _ = begin()
    for what in (
        "UPDATE api_keys SET expires_at = now()",
        "UPDATE console_sessions SET expires_at = now()",
        "UPDATE console_sessions SET last_seen_at = now() - interval '3 hours'",
    ):
        person, token, _ = begin()
        sql(database, what)
        assert is_over(person, token), what


def test_a_session_that_is_used_is_noted_and_old_ones_are_removed(
    acme: Tenant, enter: Callable[..., Person], database: Engine
) -> None:
    person = enter(acme)
    sql(database, "UPDATE console_sessions SET last_seen_at = now() - interval '1 hour'")
    is_noted = "SELECT last_seen_at > now() - interval '1 minute' FROM console_sessions"
    assert person.get("/console/batches", headers={BY_ITSELF_HEADER: "1"}).status_code == 200
    assert sql(database, is_noted) == [(False,)], "a page that looks by itself is nobody's use"
    person.page("/console/batches")
    assert sql(database, is_noted) == [(True,)]
    sql(database, "UPDATE console_sessions SET expires_at = now()")
    enter(acme)
    assert sql(database, "SELECT count(*) FROM console_sessions") == [(1,)]


def test_a_form_needs_the_token_of_its_own_session(acme: Tenant, globex: Tenant, enter: Callable[..., Person]) -> None:
    person, other = enter(acme), enter(globex)
    for given in ({}, {"csrf_token": ""}, {"csrf_token": "ä"}, {"csrf_token": other.token}):
        refused = person.http.post("/console/sign-out", data=given)
        assert refused.status_code == 403
        assert "not of your present session" in text_of(refused)
    assert person.get("/console/batches").status_code == 200


def test_a_form_of_another_site_does_nothing(acme: Tenant, enter: Callable[..., Person], address: str) -> None:
    person = enter(acme)
    for origin in ("https://evil.example", "null", "https://["):
        refused = person.http.post("/console/sign-out", data={"csrf_token": person.token}, headers={"origin": origin})
        assert refused.status_code == 403
        assert "another site" in text_of(refused)
        refused = httpx2.post(f"{address}/console/sign-in", data={"key": acme.key}, headers={"origin": origin})
        assert refused.status_code == 403
    own = person.http.post("/console/sign-out", data={"csrf_token": person.token}, headers={"origin": address})
    assert own.status_code == 303


def test_every_answer_has_the_headers_and_pages_are_not_kept(acme: Tenant, enter: Callable[..., Person]) -> None:
    person = enter(acme)
    for path in ("/console/batches", "/console/sign-in", "/console/none", "/console/static/0/console.js", "/console/"):
        headers = person.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "same-origin"
        if "/static/" not in path:
            assert headers["cache-control"] == "no-store"
    first, second = (person.get("/console/batches").headers["content-security-policy"] for _ in range(2))
    assert first != second, "a nonce is used once"


def test_only_named_files_are_served_and_they_are_kept_by_their_content(address: str) -> None:
    with httpx2.Client(base_url=address) as client:
        page = client.get("/console/sign-in").text
        for name in ("console.css", "console.js", "theme.js", "vendor/css/vendor/tabler.min.css"):
            path = next(part for part in page.split('"') if part.endswith(f"/{name}"))
            answer = client.get(path)
            assert answer.status_code == 200
            assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
            assert answer.headers["content-encoding"] == "gzip"
        assert client.get("/console/static/0/console.js").headers["cache-control"] == "no-cache"
        for name in ("vendor/js/list.js", "../app.py", "%2e%2e/app.py", "vendor/../../__init__.py"):
            assert client.get(f"/console/static/0/{name}").status_code == 404


def test_what_goes_wrong_is_a_page(acme: Tenant, enter: Callable[..., Person]) -> None:
    person = enter(acme)
    assert "There is no such page" in person.page("/console/none", 404)
    assert "begin after" in person.page("/console/batches?after=none", 400)
    assert person.get("/console").headers["location"] == "/console/"
    assert person.get("/console/").headers["location"] == "/console/batches"


def test_a_key_without_the_scope_sees_what_it_lacks(enter: Callable[..., Person]) -> None:
    person = enter("acme", scopes=["usage:read"])
    shown = person.page("/console/batches", 403)
    assert "batches:read" in shown
    assert 'href="/console/batches"' not in person.get("/console/batches").text


def test_any_gateway_answers_any_page_and_links_to_flower_where_it_is_told(
    acme: Tenant, enter: Callable[..., Person], set_before_start: Callable[[str, object], None]
) -> None:
    person = enter(acme)
    assert "Flower" not in person.get("/console/batches").text
    set_before_start("FLOWER_URL", "http://127.0.0.1:5555")
    with serve() as address, httpx2.Client(base_url=address, cookies=dict(person.http.cookies)) as client:
        page = client.get("/console/batches")
        assert "No batches yet" in text_of(page)
        assert '<a class="nav-link" href="http://127.0.0.1:5555" rel="noreferrer">Flower</a>' in page.text
        assert client.post("/console/sign-out", data={"csrf_token": person.token}).status_code == 303
    assert person.get("/console/batches").status_code == 303


def test_pages_are_calls_that_are_limited(
    set_before_start: Callable[[str, object], None], request: pytest.FixtureRequest
) -> None:
    set_before_start("TENANT_REQUESTS_PER_MINUTE", 3)
    address: str = request.getfixturevalue("address")
    person = sign_in(address, request.getfixturevalue("acme").key)
    answers = [person.get("/console/batches") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert "Rate limit reached" in text_of(answers[2])
    assert int(answers[2].headers["retry-after"]) > 0
    person.http.close()


def test_a_page_says_so_where_the_database_hangs_or_a_form_is_too_long(acme: Tenant, database: Engine) -> None:
    with serve(create_app(answer_seconds=4.0)) as address:
        person = sign_in(address, acme.key)
        with database.begin() as conn:
            conn.execute(text("LOCK TABLE console_sessions"))
            answer = person.get("/console/batches")
        assert answer.status_code == 503
        assert "does not answer at the moment" in text_of(answer)
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        answer = person.http.post("/console/sign-out", data={"csrf_token": "x" * 2 * 1024**2})
        assert answer.status_code == 413
        assert "1048576 bytes at most" in text_of(answer)
        person.http.close()
