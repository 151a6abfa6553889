"""The pages of batches: lists, one batch, its requests, its answers beside prompts, its errors beside lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from console_pages import Person, text_of
from running_gateways import Tenant
from seeds import SeededTenant, seed_model, sql
from sqlalchemy import Engine
from submitting import ENDPOINT, Bench, request_line, request_lines
from tokenizer_folders import byte_level

from pipeline.jobs.preparing import prepare
from pipeline.tables import Batch, OutcomeKind
from pipeline.tables.session import transaction
from pipeline.tenancy.keys import authenticate

NASTY = "<script>alert(1)</script>"


@pytest.fixture
def bench(acme: Tenant, database: Engine, tmp_path: Path) -> Bench:
    """What acme has, and groups do."""
    seed_model(database, path=str(byte_level(tmp_path / "model")))
    with transaction() as session:
        return Bench(database, SeededTenant(acme.id, authenticate(session, acme.key).api_key_id))


@pytest.fixture
def person(acme: Tenant, bench: Bench, enter: Callable[..., Person]) -> Person:
    return enter(acme)


def submit(tenant: Tenant, lines: list[Any], name: str = "in.jsonl", **options: Any) -> str:
    content = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines).encode()
    file_id = tenant.client.files.create(file=(name, content), purpose="batch").id
    given = {"input_file_id": file_id, "endpoint": ENDPOINT, "completion_window": "24h", **options}
    batch: Batch = tenant.client.post("/batches", body=given, cast_to=object)  # type: ignore[assignment]
    return batch["id"]  # type: ignore[index, no-any-return]


def test_the_list_shows_how_batches_stand_and_is_narrowed(acme: Tenant, bench: Bench, person: Person) -> None:
    running = submit(acme, request_lines(3), "first.jsonl")
    prepare(running, bench.engine)
    bench.answer(bench.claim(), 1)
    waiting = submit(acme, request_lines(2), "100%_sure.jsonl")
    shown = person.page("/console/batches")
    assert shown.index(waiting) < shown.index(running), "the newest first"
    assert "1 of 3" in shown
    assert "validating its file is being read" in shown
    assert 'data-refresh="5"' in person.get("/console/batches").text
    for query, found in {
        "status=in_progress": [running],
        "status=open": [running, waiting],
        "status=completed": [],
        "status=paused": [],
        "model=tiny": [running],
        f"search={waiting[:20]}": [waiting],
        "search=first": [running],
        "search=100%25_": [waiting],
        "search=%25": [waiting],
        "search=1_0": [],
    }.items():
        shown = person.page(f"/console/batches?{query}")
        assert [one for one in (running, waiting) if one in shown] == found, query
        if not found:
            assert "No such batches" in shown
    prepare(waiting, bench.engine)
    assert "waiting no group works for its model" in person.page("/console/batches")
    for state, said in {"starting": "its groups are starting", "ready": "other work comes first"}.items():
        sql(
            bench.engine,
            "INSERT INTO groups (id, model, state, pid, rank_pids, info) VALUES (:id, 'tiny', :state, 1, '[]', '{}')",
            id=f"{state}@test",
            state=state,
        )
        assert f"waiting {said}" in person.page("/console/batches")


def test_a_list_has_pages(acme: Tenant, bench: Bench, person: Person) -> None:
    ids = [bench.submit([request_line("a")]) for _ in range(26)]
    first = person.get("/console/batches?status=open")
    assert ids[0] not in first.text
    assert "Next page" in first.text
    following = next(part for part in first.text.split('"') if "after=" in part).replace("&amp;", "&")
    second = person.get(following)
    assert ids[0] in second.text
    assert "First page" in second.text
    assert "Next page" not in second.text


def test_a_batch_shows_progress_cost_and_why_it_waits(acme: Tenant, bench: Bench, person: Person) -> None:
    batch_id = submit(acme, request_lines(4), max_cost="5", metadata={"team": NASTY})
    assert "Its input file is being read" in person.page(f"/console/batches/{batch_id}")
    prepare(batch_id, bench.engine)
    assert "No group works for the model" in person.page(f"/console/batches/{batch_id}")
    bench.answer(bench.claim(), 2)
    response = person.get(f"/console/batches/{batch_id}")
    shown = text_of(response)
    assert "2 of 4 requests" in shown
    assert "Pauses before it costs 5.00 USD" in shown
    assert NASTY not in response.text
    assert NASTY in shown
    [(amount,)] = sql(bench.engine, "SELECT sum(amount) FROM usage_prices")
    assert f"Cost so far {Decimal(amount).normalize():f} USD" in shown
    assert 'data-refresh="3"' in response.text
    assert "End of its window" in shown


def test_actions_do_what_the_api_does(acme: Tenant, bench: Bench, person: Person) -> None:
    batch_id = submit(acme, request_lines(3))
    prepare(batch_id, bench.engine)
    path = f"/console/batches/{batch_id}"
    assert person.post(f"{path}/pause").headers["location"] == path
    assert "You have paused it" in person.page(path)
    assert batch_id in person.page("/console/batches?status=paused")
    assert person.post(f"{path}/resume").headers["location"] == path
    assert "You have paused it" not in person.page(path)
    claimed = bench.claim()
    bench.answer(claimed, 2)
    bench.answer(claimed, kind=OutcomeKind.FAILED)
    refused = person.post(f"{path}/retry")
    assert refused.status_code == 409
    sql(bench.engine, "UPDATE batches SET status = 'completed', completed_at = now()")
    once = person.get(path).text.split('name="once" value="')[1].split('"')[0]
    first, second = (person.post(f"{path}/retry", once=once).headers["location"] for _ in range(2))
    assert first == second != path
    assert person.post(f"{first}/cancel").headers["location"] == first
    assert "cancel" in person.page(first)
    refused = person.post(f"{path}/cancel")
    assert refused.status_code == 409
    assert "Cannot cancel a batch with status 'completed'" in text_of(refused)


def test_requests_are_found_by_outcome_and_name(acme: Tenant, bench: Bench, person: Person) -> None:
    batch_id = submit(acme, [request_line(f"r{number}") for number in range(60)])
    path = f"/console/batches/{batch_id}/requests"
    assert "No requests" in person.page(path)
    prepare(batch_id, bench.engine)
    claimed = bench.claim()
    bench.answer(claimed, 5)
    bench.answer(claimed, 2, OutcomeKind.FAILED)
    assert "r49 none yet" in person.page(path)
    assert "r50" not in person.page(path)
    assert "r59" in person.page(f"{path}?after=50")
    failed = person.page(f"{path}?outcome=failed")
    assert failed.count("engine_crashed It crashed.") == 2
    assert person.get(f"{path}?outcome=succeeded").text.count('scope="row"') == 5
    found = person.get(f"{path}?custom_id=r7").text
    assert found.count('scope="row"') == 1
    assert "No such requests" in person.page(f"{path}?custom_id=none")


def test_answers_are_beside_their_prompts(acme: Tenant, bench: Bench, person: Person) -> None:
    batch_id = submit(acme, [request_line(f"r{number}", f"{NASTY} number {number:02}") for number in range(12)])
    prepare(batch_id, bench.engine)
    bench.answer(bench.claim(), 11)
    sql(
        bench.engine,
        "UPDATE results SET body = :body",
        body=json.dumps({"choices": [{"index": 0, "text": f"It is {NASTY}", "finish_reason": "stop"}]}),
    )
    path = f"/console/batches/{batch_id}/answers"
    response = person.get(path)
    shown = text_of(response)
    assert NASTY not in response.text
    assert f"{NASTY} number 09" in shown
    assert f"It is {NASTY}" in shown
    assert "ended by: stop" in shown
    assert "number 10" not in shown
    assert "number 10" in person.page(f"{path}?after=10")
    assert "There is none yet" in person.page(f"/console/batches/{batch_id}/requests/12")
    assert person.get(f"/console/batches/{batch_id}/requests/13").status_code == 404
    sql(bench.engine, "UPDATE results SET num_line_bytes = 1000000000")
    assert "too long to be shown" in person.page(f"/console/batches/{batch_id}/requests/1")
    acme.client.files.delete(acme.client.batches.retrieve(batch_id).input_file_id)
    assert "input file is no longer kept" in person.page(path)


def test_errors_are_beside_their_lines(acme: Tenant, bench: Bench, person: Person) -> None:
    lines = [request_line("a"), "", f"{NASTY} no JSON", request_line("b", max_tokens=-1), *["{}"] * 60]
    batch_id = submit(acme, lines)
    prepare(batch_id, bench.engine)
    assert "It was refused" in person.page(f"/console/batches/{batch_id}")
    path = f"/console/batches/{batch_id}/errors"
    shown = person.page(path)
    assert "3 invalid_json" in shown
    assert f"{NASTY} no JSON" in shown
    assert "custom_id: b" in shown
    assert NASTY not in person.get(path).text
    assert "body.max_tokens" in shown
    assert person.get(path).text.count('scope="row"') == 50
    following = next(part for part in person.get(path).text.split('"') if "after=" in part)
    assert person.get(following).text.count('scope="row"') == 12
    empty = submit(acme, [" "])
    prepare(empty, bench.engine)
    assert "file empty_file" in person.page(f"/console/batches/{empty}/errors")
    fine = submit(acme, request_lines(1))
    assert "Nothing has failed so far" in person.page(f"/console/batches/{fine}/errors")


def test_files_are_downloaded(acme: Tenant, bench: Bench, person: Person) -> None:
    batch_id = submit(acme, request_lines(2))
    prepare(batch_id, bench.engine)
    path = f"/console/batches/{batch_id}/files"
    assert person.get(f"{path}/output").status_code == 404
    bench.answer(bench.claim(), 1)
    for name, num_lines in {"input": 2, "output": 1}.items():
        answer = person.get(f"{path}/{name}")
        assert answer.headers["content-disposition"].startswith("attachment")
        assert answer.text.count("\n") == num_lines
    assert person.get(f"{path}/other").status_code in (400, 404)


def test_a_key_sees_and_does_what_its_scopes_let_it(acme: Tenant, bench: Bench, enter: Callable[..., Person]) -> None:
    batch_id = submit(acme, request_lines(2))
    prepare(batch_id, bench.engine)
    bench.answer(bench.claim(), 1)
    person = enter("acme", scopes=["batches:read"])
    path = f"/console/batches/{batch_id}"
    page = person.get(path).text
    assert "/cancel" not in page
    assert "/files/" not in page
    assert "New batch" not in person.page("/console/batches")
    for refused in ("cancel", "pause", "resume", "retry"):
        assert person.post(f"{path}/{refused}").status_code == 403
    for refused in ("answers", "requests/1", "files/output"):
        assert "files:read" in person.page(f"{path}/{refused}", 403)
    assert "request-1" in person.page(f"{path}/requests")
    assert acme.client.batches.retrieve(batch_id).status == "in_progress"
