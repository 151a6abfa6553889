from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

import pytest
from seeds import MODEL
from submitting import Bench, at_once

from pipeline.billing.budgets import Scope, set_budget
from pipeline.celery import GENERATE
from pipeline.jobs import sweeping
from pipeline.jobs.audit import audit
from pipeline.jobs.cancelling import BatchNotFoundError
from pipeline.jobs.claiming import claim_slice, return_slice
from pipeline.jobs.client_pauses import BatchNotPausableError, PausedByBudgetError, pause_batch, resume_batch
from pipeline.jobs.finalizing import finalize
from pipeline.jobs.pausing import resume_paused
from pipeline.jobs.preparing import prepare
from pipeline.settings import PREFIX, get_settings
from pipeline.tables import Batch, BatchStatus, OutcomeKind
from pipeline.tables.session import transaction


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}SLICE_REQUESTS", "2")
    get_settings.cache_clear()


def act(bench: Bench, action: Callable[..., Batch], batch_id: str, **options: str) -> Batch:
    with transaction(bench.engine) as session:
        return action(session, batch_id, bench.tenant.id, **options)


def nothing_to_claim(bench: Bench) -> bool:
    with bench.engine.begin() as conn:
        return claim_slice(conn, model=MODEL, group_id="g", lease_seconds=60) is None


def budget(bench: Bench, amount: Decimal) -> str:
    with transaction(bench.engine) as session:
        return set_budget(session, Scope(tenant_id=bench.tenant.id), currency="USD", amount=amount).id


@pytest.mark.usefixtures("small_slices")
def test_nothing_more_of_a_paused_batch_is_begun_and_what_runs_is_kept(bench: Bench) -> None:
    batch_id = bench.run(4)
    running = bench.claim()

    act(bench, pause_batch, batch_id, note="month's end")

    assert nothing_to_claim(bench)
    bench.answer(running)
    paused = bench.batch(batch_id)
    assert (paused.status, paused.pause_reason, paused.pause_note) == (BatchStatus.IN_PROGRESS, "client", "month's end")
    assert paused.num_succeeded == 2
    bench.execute("DELETE FROM outbox")
    assert sweeping.add_missing_tickets(bench.engine) == 0

    act(bench, resume_batch, batch_id)

    assert bench.messages(GENERATE) == [[MODEL]]
    bench.answer(bench.claim())
    assert finalize(batch_id, bench.engine) is BatchStatus.COMPLETED
    assert bench.outcomes(batch_id) == [OutcomeKind.SUCCEEDED] * 4
    assert audit(bench.engine).violations == []


def test_what_a_group_gives_back_of_a_paused_batch_waits_with_it(bench: Bench) -> None:
    batch_id = bench.run(3)
    running = bench.claim()
    bench.answer(running, 1)
    act(bench, pause_batch, batch_id)

    with bench.engine.begin() as conn:
        assert return_slice(conn, running)

    assert nothing_to_claim(bench)
    act(bench, resume_batch, batch_id)
    bench.answer(bench.claim())
    assert bench.batch(batch_id).num_succeeded == 3


def test_the_window_stands_still_meanwhile(bench: Bench) -> None:
    batch_id = bench.run(3)
    before = bench.batch(batch_id)
    act(bench, pause_batch, batch_id)
    bench.execute("UPDATE batches SET paused_at = paused_at - interval '25 hours'")
    bench.execute("UPDATE batches SET expires_at = expires_at - interval '25 hours'")
    assert sweeping.end_waiting(bench.engine) == 0

    act(bench, resume_batch, batch_id)

    after = bench.batch(batch_id)
    assert abs((after.expires_at - before.expires_at).total_seconds()) < 60
    assert after.paused_at is None
    [waiting] = bench.slices(batch_id)
    assert (waiting.deadline - before.expires_at).total_seconds() == pytest.approx(25 * 3600, abs=60)


def test_a_batch_that_ends_while_it_is_paused_has_missed_no_window(bench: Bench) -> None:
    batch_id = bench.run(3)
    running = bench.claim()
    act(bench, pause_batch, batch_id)
    bench.execute("UPDATE batches SET paused_at = now() - interval '1 hour', expires_at = now() - interval '1 minute'")

    bench.answer(running)
    assert finalize(batch_id, bench.engine) is BatchStatus.COMPLETED

    ended = bench.batch(batch_id)
    assert ended.completed_at is not None
    assert ended.completed_at < ended.expires_at
    assert ended.pause_reason is None
    with bench.engine.connect() as conn:
        assert conn.exec_driver_sql("SELECT count(*) FROM credit_notes").scalar_one() == 0


def test_a_batch_that_its_client_has_paused_is_not_resumed_by_a_budget(bench: Bench) -> None:
    budget_id = budget(bench, Decimal(0))
    batch_id = bench.run(3)
    assert nothing_to_claim(bench)
    assert bench.batch(batch_id).pause_reason == budget_id
    with pytest.raises(PausedByBudgetError, match=budget_id):
        act(bench, resume_batch, batch_id)
    since = bench.batch(batch_id).paused_at

    act(bench, pause_batch, batch_id)
    budget(bench, Decimal(1))

    assert resume_paused(bench.engine) == 0
    assert bench.batch(batch_id).paused_at == since  # its window stood still already
    assert nothing_to_claim(bench)
    act(bench, resume_batch, batch_id)
    assert bench.claim().batch_id == batch_id


def test_a_budget_that_still_has_no_room_pauses_a_batch_again(bench: Bench) -> None:
    budget_id = budget(bench, Decimal(0))
    batch_id = bench.run(3)
    act(bench, pause_batch, batch_id)

    act(bench, resume_batch, batch_id)

    assert nothing_to_claim(bench)
    assert bench.batch(batch_id).pause_reason == budget_id


def test_a_batch_that_is_paused_while_it_is_checked_begins_when_it_is_resumed(bench: Bench) -> None:
    batch_id = bench.submit([{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {
        "model": MODEL, "prompt": "x", "max_tokens": 4}}])  # fmt: skip
    act(bench, pause_batch, batch_id)

    assert prepare(batch_id, bench.engine) is BatchStatus.IN_PROGRESS

    assert nothing_to_claim(bench)
    act(bench, resume_batch, batch_id)
    assert bench.claim().batch_id == batch_id


def test_pausing_and_resuming_again_is_fine_and_shifts_the_window_once(bench: Bench) -> None:
    batch_id = bench.run(3)
    act(bench, pause_batch, batch_id, note="first")
    assert act(bench, pause_batch, batch_id, note="second").pause_note == "first"
    bench.execute("UPDATE batches SET paused_at = paused_at - interval '1 hour'")
    before = bench.batch(batch_id).expires_at

    at_once(lambda: act(bench, resume_batch, batch_id), 6)

    assert (bench.batch(batch_id).expires_at - before).total_seconds() == pytest.approx(3600, abs=60)
    assert act(bench, resume_batch, batch_id).pause_reason is None


def test_only_what_has_not_ended_can_be_paused(bench: Bench) -> None:
    batch_id = bench.run(1)
    with pytest.raises(BatchNotFoundError), transaction(bench.engine) as session:
        pause_batch(session, batch_id, "another")
    bench.answer(bench.claim())
    finalize(batch_id, bench.engine)
    for action in (pause_batch, resume_batch):
        with pytest.raises(BatchNotPausableError, match="with status 'completed'"):
            act(bench, action, batch_id)
