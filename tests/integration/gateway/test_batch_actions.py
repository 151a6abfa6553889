"""`/pause`, `/resume` and `/retry`, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running_gateways import Tenant, error_of
from seeds import SeededTenant, seed_model, sql
from sqlalchemy import Engine
from submitting import Bench, request_line, request_lines
from tokenizer_folders import byte_level

from pipeline import storage
from pipeline.files import upload_key
from pipeline.jobs import outbox
from pipeline.jobs.finalizing import finalize
from pipeline.jobs.preparing import prepare
from pipeline.tables import OutcomeKind


@pytest.fixture
def acme(join: Callable[..., Tenant], monkeypatch: pytest.MonkeyPatch) -> Tenant:
    monkeypatch.setattr(outbox, "publish_soon", lambda *_: None)
    return join("acme")


@pytest.fixture
def bench(database: Engine, acme: Tenant, tmp_path: Path) -> Bench:
    """Groups for what acme submits over HTTP."""
    seed_model(database, path=str(byte_level(tmp_path / "model")))
    return Bench(database, SeededTenant(acme.id, ""))


def submit(acme: Tenant, bench: Bench, lines: list[dict[str, Any]], **options: Any) -> str:
    """A batch in progress."""
    # With a blank line and line ends of another kind: numbers count all lines.
    content = "\ufeff\r\n" + "".join(json.dumps(line) + "\r\n" for line in lines)
    file = acme.client.files.create(file=("fruit.jsonl", content.encode()), purpose="batch")
    batch_id = acme.client.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="2h", **options
    ).id
    prepare(batch_id, bench.engine)
    return batch_id


def act(acme: Tenant, batch_id: str, action: str, **options: Any) -> Any:
    return acme.http.post(f"/v1/batches/{batch_id}/{action}", **options)


def answer(bench: Bench, batch_id: str, *kinds: OutcomeKind) -> None:
    """Give the next requests these outcomes, and close the batch."""
    claimed = bench.claim()
    for kind in kinds:
        bench.answer(claimed, 1, kind)
    finalize(batch_id, bench.engine)


def limit_batches(acme: Tenant, bench: Bench, number: int) -> None:
    insert = "INSERT INTO queue_limits (tenant_id, model, enqueued_batches) VALUES (:id, '', :number)"
    sql(bench.engine, f"{insert} ON CONFLICT DO NOTHING", id=acme.id, number=number)


def stored_blobs(tmp_path: Path) -> set[Path]:
    return {path for path in (tmp_path / "blobs").rglob("*") if path.is_file()}


def test_a_batch_is_paused_with_a_reason_and_resumed(acme: Tenant, bench: Bench) -> None:
    batch_id = submit(acme, bench, request_lines(2))

    paused = act(acme, batch_id, "pause", json={"reason": "wait for the new model"}).json()

    assert (paused["status"], paused["pause_reason"]) == ("in_progress", "client")
    assert paused["pause_note"] == "wait for the new model"
    assert acme.client.batches.retrieve(batch_id).to_dict()["pause_reason"] == "client"
    explained = acme.http.get(f"/v1/batches/{batch_id}/explain").json()
    assert [reason["code"] for reason in explained["reasons"]] == ["paused"]
    assert act(acme, batch_id, "pause").json()["pause_note"] == "wait for the new model"
    resumed = act(acme, batch_id, "resume").json()
    assert (resumed["pause_reason"], resumed["pause_note"]) == (None, None)
    assert act(acme, batch_id, "resume").status_code == 200


def test_what_can_not_be_paused_resumed_or_retried_says_why(acme: Tenant, bench: Bench) -> None:
    batch_id = submit(acme, bench, request_lines(1))
    running = error_of(act(acme, batch_id, "retry"))
    assert (running["code"], running["param"]) == ("batch_not_retryable", "batch_id")
    assert "Wait until it has ended" in str(running["message"])
    sql(bench.engine, "UPDATE batches SET pause_reason = 'budget_7', paused_at = now()")
    stopped = error_of(act(acme, batch_id, "resume"))
    assert stopped["code"] == "batch_paused_by_budget"
    assert "raise the limit" in str(stopped["message"])
    sql(bench.engine, "UPDATE batches SET pause_reason = NULL, paused_at = NULL")
    answer(bench, batch_id, OutcomeKind.SUCCEEDED)
    for action, code in (("pause", "batch_not_pausable"), ("resume", "batch_not_pausable")):
        response = act(acme, batch_id, action)
        assert (response.status_code, error_of(response)["code"]) == (409, code)
    succeeded = act(acme, batch_id, "retry")
    assert succeeded.status_code == 409
    assert "Every request of this batch has succeeded" in str(error_of(succeeded)["message"])
    invalid = submit(acme, bench, request_lines(1, max_tokens=-1))
    assert "failed when its input file was checked" in str(error_of(act(acme, invalid, "retry"))["message"])


@pytest.mark.parametrize("body", [{"reason": 7}, {"reason": ""}, {"reason": "x" * 513}, {"reason": "\0"}, {"why": "x"}])
def test_a_strange_reason_is_refused(acme: Tenant, bench: Bench, body: dict[str, Any]) -> None:
    batch_id = submit(acme, bench, request_lines(1))
    assert act(acme, batch_id, "pause", json=body).status_code == 400
    assert bench.batch(batch_id).pause_reason is None


def test_a_retry_is_a_batch_of_exactly_the_lines_without_an_answer(acme: Tenant, bench: Bench) -> None:
    lines = request_lines(5, prompt="the same \u00e4pple")
    first = submit(
        acme, bench, lines, metadata={"run": "7"}, extra_body={"service_class": "priority", "max_cost": "2.5"}
    )
    answer(bench, first, OutcomeKind.SUCCEEDED, OutcomeKind.FAILED, OutcomeKind.EXPIRED, OutcomeKind.CANCELLED,
           OutcomeKind.SUCCEEDED)  # fmt: skip
    before = acme.client.batches.retrieve(first).to_dict()

    second = act(acme, first, "retry").json()

    assert second["id"] != first
    assert second["status"] == "validating"
    same = ("endpoint", "completion_window", "service_class", "max_cost", "receipts")
    assert {name: second[name] for name in same} == {name: before[name] for name in same}
    assert second["metadata"] == {"run": "7", "retried_from": first}
    file = acme.client.files.retrieve(second["input_file_id"])
    assert (file.filename, file.purpose) == ("fruit_retry.jsonl", "batch")
    content = acme.client.files.content(file.id).read()
    assert file.bytes == len(content)
    unanswered = {
        request.custom_id for request in bench.requests(first) if request.outcome is not OutcomeKind.SUCCEEDED
    }
    assert len(unanswered) == 3
    assert content == b"".join(json.dumps(line).encode() + b"\n" for line in lines if line["custom_id"] in unanswered)
    prepare(second["id"], bench.engine)
    answer(bench, second["id"], OutcomeKind.SUCCEEDED, OutcomeKind.SUCCEEDED, OutcomeKind.FAILED)
    third = act(acme, second["id"], "retry").json()
    assert third["metadata"]["retried_from"] == second["id"]
    assert len(acme.client.files.content(third["input_file_id"]).read().splitlines()) == 1


def test_a_retry_that_is_sent_again_makes_no_second_batch(acme: Tenant, bench: Bench) -> None:
    batch_id = submit(acme, bench, request_lines(2))
    answer(bench, batch_id, OutcomeKind.FAILED, OutcomeKind.FAILED)
    named = {"Idempotency-Key": "once more"}

    answers = [act(acme, batch_id, "retry", headers=named).json() for _ in range(3)]

    assert len({one["id"] for one in answers}) == 1
    assert len(acme.client.batches.list().data) == 2


def test_a_retry_without_its_input_file_is_refused_and_leaves_nothing(acme: Tenant, bench: Bench) -> None:
    batch_id = submit(acme, bench, request_lines(2))
    answer(bench, batch_id, OutcomeKind.FAILED, OutcomeKind.FAILED)
    [(file_id,)] = sql(bench.engine, "SELECT input_file_id FROM batches")
    storage.delete_blob(upload_key(file_id))
    assert "is gone" in str(error_of(act(acme, batch_id, "retry"))["message"])

    acme.client.files.delete(file_id)
    response = act(acme, batch_id, "retry")

    assert response.status_code == 409
    assert "was deleted or has expired" in str(error_of(response)["message"])
    assert len(acme.client.batches.list().data) == 1


def test_a_retry_that_a_limit_refuses_leaves_no_blob(acme: Tenant, bench: Bench, tmp_path: Path) -> None:
    batch_id = submit(acme, bench, request_lines(2))
    answer(bench, batch_id, OutcomeKind.FAILED, OutcomeKind.FAILED)
    sql(
        bench.engine,
        "INSERT INTO rate_limits (tenant_id, api_key_id, tokens_per_minute) VALUES (:id, '', 1)",
        id=acme.id,
    )
    blobs = stored_blobs(tmp_path)

    assert act(acme, batch_id, "retry").status_code == 429

    assert stored_blobs(tmp_path) == blobs
    assert len(acme.client.batches.list().data) == 1


def test_other_batches_are_submitted_while_a_retry_copies_its_lines(
    acme: Tenant, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = submit(acme, bench, request_lines(2))
    answer(bench, batch_id, OutcomeKind.FAILED, OutcomeKind.FAILED)
    [(file_id,)] = sql(bench.engine, "SELECT input_file_id FROM batches")
    limit_batches(acme, bench, 5)
    write, meanwhile = storage.write_blob, []

    def write_late(*args: Any) -> int:
        options: Any = {"endpoint": "/v1/completions", "completion_window": "2h", "timeout": 5}
        meanwhile.append(acme.client.batches.create(input_file_id=file_id, **options).id)
        return write(*args)

    monkeypatch.setattr(storage, "write_blob", write_late)

    late = act(acme, batch_id, "retry").json()

    assert len(meanwhile) == 1
    assert {batch.id for batch in acme.client.batches.list().data} == {batch_id, late["id"], *meanwhile}


def test_a_retry_that_is_too_much_copies_nothing_or_leaves_nothing(
    acme: Tenant, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = submit(acme, bench, request_lines(2))
    answer(bench, batch_id, OutcomeKind.FAILED, OutcomeKind.FAILED)
    other = submit(acme, bench, request_lines(1))
    write, copies, blobs = storage.write_blob, [], stored_blobs(tmp_path)

    def write_and_fill(*args: Any) -> int:
        copies.append(args[0])
        limit_batches(acme, bench, 1)
        return write(*args)

    monkeypatch.setattr(storage, "write_blob", write_and_fill)

    refused = [act(acme, batch_id, "retry") for _ in range(2)]

    assert [error_of(one)["code"] for one in refused] == ["batch_limit_exceeded"] * 2
    assert len(copies) == 1  # the second was refused before its lines were copied
    assert stored_blobs(tmp_path) == blobs
    assert {batch.id for batch in acme.client.batches.list().data} == {batch_id, other}


def test_a_retry_that_was_answered_meanwhile_leaves_no_second_copy(
    acme: Tenant, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = submit(acme, bench, request_lines(2))
    answer(bench, batch_id, OutcomeKind.FAILED, OutcomeKind.FAILED)
    write, named, blobs = storage.write_blob, {"Idempotency-Key": "once more"}, stored_blobs(tmp_path)
    faster: list[Any] = []

    def write_late(*args: Any) -> int:
        monkeypatch.setattr(storage, "write_blob", write)
        faster.append(act(acme, batch_id, "retry", headers=named).json())
        return write(*args)

    monkeypatch.setattr(storage, "write_blob", write_late)

    assert act(acme, batch_id, "retry", headers=named).json() == faster[0]
    assert len(stored_blobs(tmp_path) - blobs) == 1
    assert len(acme.client.batches.list().data) == 2


def test_a_batch_whose_metadata_is_full_keeps_it_when_it_is_retried(acme: Tenant, bench: Bench) -> None:
    pairs = {f"key {number}": "x" for number in range(16)}
    batch_id = submit(acme, bench, request_lines(1), metadata=pairs)
    answer(bench, batch_id, OutcomeKind.FAILED)
    assert act(acme, batch_id, "retry").json()["metadata"] == pairs

    sql(bench.engine, "UPDATE batches SET metadata = metadata - 'key 0' || jsonb_build_object('retried_from', 'b')"
                      " WHERE id = :id", id=batch_id)  # fmt: skip
    metadata = act(acme, batch_id, "retry").json()["metadata"]
    assert (len(metadata), metadata["retried_from"]) == (16, batch_id)


def test_lines_that_were_skipped_or_dropped_can_not_be_retried(acme: Tenant, bench: Bench) -> None:
    lines = [*request_lines(1), request_line("bad", max_tokens=-1)]
    batch_id = submit(acme, bench, lines, extra_body={"on_invalid": "skip"})
    answer(bench, batch_id, OutcomeKind.SUCCEEDED)
    skipped = error_of(act(acme, batch_id, "retry"))
    assert "skipped as invalid, and have to be corrected first: 1." in str(skipped["message"])

    sql(bench.engine, "INSERT INTO dropped_months (name, num_requests) VALUES ('2020_01', 1)")
    sql(bench.engine, "INSERT INTO dropped_batches (batch_id, month) VALUES (:id, '2020_01')", id=batch_id)
    dropped = error_of(act(acme, batch_id, "retry"))
    assert "no longer kept" in str(dropped["message"])
    assert len(acme.client.batches.list().data) == 1
