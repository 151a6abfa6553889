"""From a file to a batch: uploaded, checked line by line, quoted, and created."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from computed_quotes import computing_quotes
from console_pages import Person, text_of
from running_gateways import Tenant, wait_for
from seeds import seed_model, sql
from sqlalchemy import Engine
from submitting import request_line, request_lines
from tokenizer_folders import byte_level

NASTY = "<img src=x onerror=alert(1)>"


@pytest.fixture
def control(database: Engine, tmp_path: Path) -> Iterator[None]:
    """Computes quotes, as control does."""
    seed_model(database, path=str(byte_level(tmp_path / "model")))
    with computing_quotes():
        yield


@pytest.fixture
def person(acme: Tenant, control: None, enter: Callable[..., Person]) -> Person:
    return enter(acme)


def content_of(lines: list[Any]) -> bytes:
    return "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines).encode()


def upload(person: Person, content: bytes, *, token: str | None = None, purpose: str = "batch") -> str:
    """The path of the quote that it leads to."""
    response = person.http.post(
        "/console/upload",
        params={"csrf_token": person.token if token is None else token},
        data={"purpose": purpose},
        files={"file": ("mine.jsonl", content)},
    )
    assert response.status_code == 303, text_of(response)
    return response.headers["location"]


def computed(person: Person, path: str) -> str:
    """The page when the quote has been computed; it looks for that by itself."""
    assert person.get(path).status_code == 200
    wait_for(lambda: 'data-refresh="1"' not in person.get(path).text, 30)
    return person.page(path)


def test_a_file_becomes_a_batch_at_the_quoted_price(acme: Tenant, person: Person, database: Engine) -> None:
    path = upload(person, content_of(request_lines(3)))
    shown = computed(person, path)
    [(p50, worst)] = sql(database, "SELECT trim_scale(cost_p50)::text, trim_scale(cost_worst)::text FROM quotes")
    assert f"Half stay below {p50} USD" in shown
    assert f"At most {worst} USD" in shown
    assert "Requests 3" in shown
    assert "Endpoint /v1/completions" in shown, "as the first line says"
    assert acme.client.batches.list().data == []
    once = person.get(path).text.split('name="once" value="')[1].split('"')[0]
    given = {"completion_window": "2h", "max_cost": "1.25", "once": once}
    first, second = (person.post(f"{path}/batch", **given).headers["location"] for _ in range(2))
    assert first == second, "pressed twice"
    [batch] = acme.client.batches.list().data
    assert first == f"/console/batches/{batch.id}"
    assert (batch.completion_window, batch.max_cost, batch.quote_id) == ("2h", "1.25", path.rsplit("/", 1)[1])  # type: ignore[attr-defined]
    assert f"Quoted, at most {worst} USD" in person.page(first)


def test_all_that_is_wrong_is_shown_on_its_line_before_anything_is_made(
    acme: Tenant, person: Person, database: Engine
) -> None:
    bad = [f"{NASTY} {number}" for number in range(119)]
    lines = [request_line("good"), "", *bad, request_line("worse", max_tokens="many")]
    path = upload(person, content_of(lines))
    shown = computed(person, path)
    assert "120 things are wrong with this file" in shown
    assert NASTY not in person.get(path).text
    numbers, page = [], path
    while page:
        text = person.get(page).text
        assert "1 good" not in text
        numbers += [int(part.split("<")[0]) for part in text.split('class="number fw-normal">')[1:]]
        following = [part for part in text.split('"') if part.startswith(f"{path}?after=")]
        page = following[0] if following else ""
    assert numbers == list(range(3, 123))
    assert f"{NASTY} 5" in shown
    last = person.page(f"{path}?after=119")
    assert "body.max_tokens" in last
    assert '"custom_id": "worse"' in last
    assert len(acme.client.get(f"/batches/quote/{path.rsplit('/', 1)[1]}", cast_to=object)["errors"]["data"]) == 100  # type: ignore[index]
    again = person.post(
        "/console/quotes",
        input_file_id=str(sql(database, "SELECT id FROM files")[0][0]),
        endpoint="/v1/completions",
        service_class="flex",
        on_invalid="skip",
    ).headers["location"]
    shown = computed(person, again)
    assert "Lines to be skipped 120" in shown
    assert "Lines that would be skipped" in shown
    made = person.post(f"{again}/batch", completion_window="24h").headers["location"]
    assert "Invalid lines skipped" in person.page(made)
    [batch] = acme.client.batches.list().data
    assert batch.service_class == "flex"  # type: ignore[attr-defined]


def test_a_mistake_in_the_form_is_shown_beside_it(acme: Tenant, person: Person) -> None:
    path = upload(person, content_of(request_lines(1)))
    computed(person, path)
    for given, said in {
        ("completion_window", "soon"): "is no completion window",
        ("completion_window", "8d"): "is no",
        ("max_cost", "-1"): "max_cost",
    }.items():
        fields = {"completion_window": "24h", given[0]: given[1]}
        refused = person.post(f"{path}/batch", **fields)
        assert refused.status_code == 400
        assert said in text_of(refused)
        assert f'value="{given[1]}"' in refused.text
    assert person.post("/console/quotes", input_file_id="file-none", endpoint="/v1/completions").status_code == 400
    assert person.post("/console/quotes", input_file_id="file-none", endpoint="/v1/none").status_code == 400
    assert acme.client.batches.list().data == []


def test_an_upload_needs_the_token_the_scopes_and_a_size(
    person: Person,
    enter: Callable[..., Person],
    database: Engine,
    set_before_start: Callable[[str, object], None],
) -> None:
    files = {"file": ("a.jsonl", b"{}\n")}
    for token in ("", "x"):
        refused = person.http.post(f"/console/upload?csrf_token={token}", data={"purpose": "batch"}, files=files)
        assert refused.status_code == 403
    headers = {"origin": "https://evil.example"}
    address = f"/console/upload?csrf_token={person.token}"
    assert person.http.post(address, data={"purpose": "batch"}, files=files, headers=headers).status_code == 403
    for scopes in (["files:write", "batches:read"], ["batches:write", "batches:read"]):
        other = enter("acme", scopes=scopes)
        assert other.get("/console/upload").status_code == 403
        refused = other.http.post(f"/console/upload?csrf_token={other.token}", data={"purpose": "batch"}, files=files)
        assert refused.status_code == 403
    set_before_start("MAX_BATCH_FILE_BYTES", 100_000)
    refused = person.http.post(
        f"/console/upload?csrf_token={person.token}", data={"purpose": "batch"}, files={"file": ("a", bytes(200_000))}
    )
    assert refused.status_code == 413
    assert "The file is too large" in text_of(refused)
    assert sql(database, "SELECT count(*) FROM files") == [(0,)]
    large = b"x" * 2 * 1024**2  # longer than any body but that of an upload
    set_before_start("MAX_BATCH_FILE_BYTES", 3 * 1024**2)
    assert "1 thing is wrong" in computed(person, upload(person, large))
