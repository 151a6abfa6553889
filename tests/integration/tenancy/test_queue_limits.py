from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from running_gateways import Tenant, error_of
from seeds import MODEL, sql
from sqlalchemy import Engine
from submitting import Bench, request_lines

from pipeline.jobs.cancelling import cancel_batch, end_cancelled
from pipeline.jobs.preparing import prepare
from pipeline.tables import BatchStatus, OutcomeKind
from pipeline.tables.session import transaction
from pipeline.tenancy.limits import set_queue_limits

PROMPT = [1] * 10


@pytest.fixture
def bench(database: Engine, redis_url: str, tmp_path: Path) -> Bench:
    return Bench.make(database, tmp_path / "tiny")


def limit(bench: Bench, model: str | None = None, **limits: int) -> None:
    with transaction(bench.engine) as session:
        set_queue_limits(session, bench.tenant.id, limits, model=model)


def submitted(bench: Bench, num_requests: int) -> str:
    return bench.submit(request_lines(num_requests, prompt=PROMPT))


def enqueued(bench: Bench) -> int:
    ((tokens,),) = sql(
        bench.engine,
        "SELECT coalesce(sum(num_reserved_tokens - num_released_tokens), 0)::bigint FROM batches"
        " WHERE status IN ('in_progress', 'cancelling')",
    )
    return int(tokens)


def test_a_batch_that_would_pass_the_limit_fails_as_openais_do(bench: Bench) -> None:
    limit(bench, enqueued_tokens=50)
    first, second, third = (submitted(bench, number) for number in (3, 3, 2))
    assert prepare(first) is BatchStatus.IN_PROGRESS
    assert prepare(second) is BatchStatus.FAILED
    assert prepare(third) is BatchStatus.IN_PROGRESS
    assert enqueued(bench) == 50

    [error] = bench.errors(second)
    assert (error.code, error.line) == ("token_limit_exceeded", 0)
    assert "Limit: 50 enqueued tokens, of which 30 are in use; this batch has 30" in error.message
    assert bench.requests(second) == []


def test_tokens_are_free_again_as_requests_end_whatever_their_outcome(bench: Bench) -> None:
    limit(bench, enqueued_tokens=40)
    batch_id = submitted(bench, 4)
    prepare(batch_id)
    assert prepare(submitted(bench, 1)) is BatchStatus.FAILED
    claimed = bench.claim()
    bench.answer(claimed, 1)
    assert enqueued(bench) == 30
    bench.answer(claimed, 1, OutcomeKind.FAILED)
    assert enqueued(bench) == 20
    assert prepare(submitted(bench, 2)) is BatchStatus.IN_PROGRESS
    assert prepare(submitted(bench, 1)) is BatchStatus.FAILED
    assert enqueued(bench) == 40


def test_a_cancelled_batch_frees_its_tokens(bench: Bench) -> None:
    limit(bench, enqueued_tokens=40)
    batch_id = submitted(bench, 4)
    prepare(batch_id)
    with transaction() as session:
        cancel_batch(session, batch_id, bench.tenant.id)
    end_cancelled(batch_id)
    assert bench.batch(batch_id).num_released_tokens == 40
    assert prepare(submitted(bench, 4)) is BatchStatus.IN_PROGRESS


def test_batches_prepared_at_once_never_pass_the_limit(bench: Bench) -> None:
    limit(bench, enqueued_tokens=70)
    ids = [submitted(bench, 2) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(prepare, ids))
    assert statuses.count(BatchStatus.IN_PROGRESS) == 3
    assert statuses.count(BatchStatus.FAILED) == 5
    assert enqueued(bench) == 60


def test_a_batch_that_is_prepared_again_is_counted_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(bench, enqueued_tokens=40)
    batch_id = submitted(bench, 4)
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.jobs.preparing.plan", lambda *_: 1 / 0)
        assert prepare(batch_id) is None
    # What it has reserved is its own: no other gets it meanwhile.
    assert prepare(submitted(bench, 1)) is BatchStatus.FAILED
    sql(bench.engine, "UPDATE batches SET prepare_after = NULL")
    assert prepare(batch_id) is BatchStatus.IN_PROGRESS


def test_a_model_has_a_limit_of_its_own(bench: Bench) -> None:
    limit(bench, enqueued_tokens=10)
    limit(bench, model="other", enqueued_tokens=5)
    limit(bench, model=MODEL, enqueued_tokens=40, enqueued_batches=1)
    assert prepare(submitted(bench, 4)) is BatchStatus.IN_PROGRESS
    second = submitted(bench, 1)
    assert prepare(second) is BatchStatus.FAILED
    assert [error.code for error in bench.errors(second)] == ["batch_limit_exceeded"]


def test_other_tenants_are_not_counted(bench: Bench, database: Engine, set_before_start: Callable[..., None]) -> None:
    set_before_start("TENANT_ENQUEUED_TOKENS", 40)
    assert prepare(submitted(bench, 4)) is BatchStatus.IN_PROGRESS
    sql(database, "INSERT INTO tenants (id, name) VALUES ('other', 'other')")
    sql(database, "UPDATE batches SET tenant_id = 'other'")
    assert prepare(submitted(bench, 4)) is BatchStatus.IN_PROGRESS


def test_submitters_at_once_get_no_more_batches_than_the_limit(acme: Tenant, database: Engine) -> None:
    with transaction() as session:
        set_queue_limits(session, acme.id, {"enqueued_batches": 3})
    file_id = acme.client.files.create(file=("in.jsonl", b"{}\n"), purpose="batch").id
    body = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda _: acme.http.post("/v1/batches", json=body), range(12)))
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 9
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert error_of(refused)["code"] == "batch_limit_exceeded"
    assert int(refused.headers["retry-after"]) > 0
    sql(database, "UPDATE batches SET status = 'completed' WHERE id = (SELECT min(id) FROM batches)")
    assert acme.http.post("/v1/batches", json=body).status_code == 200
    assert acme.http.post("/v1/batches", json=body).status_code == 429
