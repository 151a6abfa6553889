from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest
from budgeted_batches import MOST, budget, lines, nothing_to_claim, run, spent_in_truth, state
from seeds import MODEL, sql
from sqlalchemy import Engine
from submitting import Bench

from pipeline.billing.budgets import Scope, alert_budgets, make_prepaid, set_budget
from pipeline.billing.credits import grant_credit
from pipeline.billing.rate_cards import add_rate_card
from pipeline.celery import GENERATE
from pipeline.jobs import sweeping
from pipeline.jobs.audit import audit
from pipeline.jobs.claiming import claim_slice, load_requests, return_slice
from pipeline.jobs.pausing import resume_paused
from pipeline.jobs.preparing import prepare
from pipeline.settings import PREFIX, get_settings
from pipeline.tables import BatchStatus, OutcomeKind, SliceStatus
from pipeline.tables.session import transaction


def test_a_claim_holds_the_most_that_its_requests_can_cost(bench: Bench) -> None:
    budget(bench, Decimal(1))
    run(bench, 3)

    bench.claim()

    assert state(bench) == (0, 3 * MOST)


def test_what_is_recorded_is_spent_and_no_longer_held(bench: Bench) -> None:
    budget(bench, Decimal(1))
    run(bench, 3)
    claimed = bench.claim()

    bench.answer(claimed, 2)
    spent, held = state(bench)
    assert spent == spent_in_truth(bench) > 0
    assert held == 3 * MOST - spent

    bench.answer(claimed)
    assert state(bench) == (spent_in_truth(bench), 0)
    assert sql(bench.engine, "SELECT * FROM holds") == []


def test_a_price_that_rises_after_a_claim_passes_no_limit(bench: Bench) -> None:
    budget(bench, 2 * MOST)
    run(bench, 3)
    claimed = bench.claim()
    with transaction(bench.engine) as session:
        prices = dict.fromkeys(("input_price", "cached_input_price", "output_price"), Decimal(1000))
        add_rate_card(session, MODEL, currency="USD", batch_discount=Decimal(0), **prices)

    bench.answer(claimed)

    assert state(bench) == (spent_in_truth(bench), 0)
    assert 0 < spent_in_truth(bench) <= 2 * MOST
    assert nothing_to_claim(bench), "what is claimed now costs the new price"


def test_requests_that_fail_cost_nothing_and_free_their_hold(bench: Bench) -> None:
    budget(bench, Decimal(1))
    run(bench, 3)

    bench.answer(bench.claim(), kind=OutcomeKind.FAILED)

    assert state(bench) == (0, 0)


def test_a_slice_that_is_given_back_or_lost_holds_nothing(bench: Bench) -> None:
    budget(bench, Decimal(1))
    run(bench, 3)
    with bench.engine.begin() as conn:
        claimed = claim_slice(conn, model=MODEL, group_id="g", lease_seconds=60)
        assert claimed is not None
        assert return_slice(conn, claimed)
    assert state(bench) == (0, 0)

    bench.claim(lease_seconds=0)
    assert state(bench) == (0, 3 * MOST)
    assert sweeping.take_back_lost_slices(bench.engine) == 1
    assert state(bench) == (0, 0)


def test_a_slice_of_which_a_part_fits_is_cut_and_the_rest_waits(bench: Bench) -> None:
    budget(bench, 2 * MOST)
    batch_id = run(bench, 5)

    claimed = bench.claim()

    with bench.engine.begin() as conn:
        assert [request.custom_id for request in load_requests(conn, claimed)] == ["request-1", "request-2"]
    first, rest = bench.slices(batch_id)
    assert (first.num_requests, first.num_unfinished, first.num_tokens) == (2, 2, 14)
    assert (rest.num_requests, rest.num_unfinished, rest.num_tokens) == (3, 3, 21)
    assert (rest.status, rest.position) == (SliceStatus.PENDING, 1)
    assert nothing_to_claim(bench)
    bench.answer(claimed)
    assert audit(bench.engine).violations == []


def test_a_batch_without_room_pauses_and_goes_on_when_the_limit_is_raised(bench: Bench) -> None:
    budget_id = budget(bench, MOST / 2)
    batch_id = run(bench, 3)
    before = bench.batch(batch_id)

    assert nothing_to_claim(bench)
    paused = bench.batch(batch_id)
    assert (paused.status, paused.pause_reason, paused.pause_needs) == (BatchStatus.IN_PROGRESS, budget_id, MOST)
    [waiting] = bench.slices(batch_id)
    assert waiting.status is SliceStatus.PENDING
    assert sql(bench.engine, "SELECT * FROM attempts") == []
    assert resume_paused(bench.engine) == 0
    bench.execute("UPDATE batches SET paused_at = paused_at - interval '1 hour'")
    bench.execute("DELETE FROM outbox")

    budget(bench, Decimal(1))
    assert resume_paused(bench.engine) == 1

    after = bench.batch(batch_id)
    assert (after.pause_reason, after.pause_needs, after.paused_at) == (None, None, None)
    assert 3600 <= (after.expires_at - before.expires_at).total_seconds() < 3700
    assert abs((bench.slices(batch_id)[0].deadline - after.expires_at).total_seconds()) < 1
    assert bench.messages(GENERATE) == [[MODEL]]
    bench.answer(bench.claim())
    assert bench.outcomes(batch_id) == [OutcomeKind.SUCCEEDED] * 3


def test_a_full_budget_of_another_currency_keeps_no_batch_from_going_on(bench: Bench) -> None:
    budget(bench, MOST / 2)
    with transaction(bench.engine) as session:
        set_budget(session, Scope(tenant_id=bench.tenant.id), currency="EUR", amount=Decimal(0))
    batch_id = run(bench, 1)
    assert nothing_to_claim(bench)
    assert resume_paused(bench.engine) == 0

    budget(bench, Decimal(1))

    assert resume_paused(bench.engine) == 1
    assert bench.claim().batch_id == batch_id


def test_a_paused_batch_does_not_expire_nor_does_it_ask_for_tickets(bench: Bench) -> None:
    budget(bench, Decimal(0))
    batch_id = run(bench, 3)
    assert nothing_to_claim(bench)
    bench.execute("UPDATE batches SET expires_at = now() - interval '1 minute'")
    bench.execute("DELETE FROM outbox")

    assert sweeping.end_waiting(bench.engine) == 0
    assert sweeping.add_missing_tickets(bench.engine) == 0

    assert bench.outcomes(batch_id) == [None] * 3


def test_another_batch_is_claimed_in_place_of_one_that_has_no_room(bench: Bench) -> None:
    paused = run(bench, 3, max_cost=MOST / 2)
    free = run(bench, 1)

    assert bench.claim().batch_id == free

    assert bench.batch(paused).pause_reason is not None
    assert bench.batch(free).pause_reason is None


def test_a_batch_costs_no_more_than_its_max_cost(bench: Bench) -> None:
    batch_id = run(bench, 10, max_cost=4 * MOST)

    for _ in range(10):
        with bench.engine.begin() as conn:
            claimed = claim_slice(conn, model=MODEL, group_id="g", lease_seconds=60)
        if claimed is None and resume_paused(bench.engine) == 0:
            break
        if claimed is not None:
            bench.answer(claimed)

    spent = spent_in_truth(bench)
    assert 4 * MOST - MOST < spent <= 4 * MOST  # no room for another
    assert bench.batch(batch_id).pause_reason is not None
    assert 4 < bench.batch(batch_id).num_succeeded < 10


def test_a_soft_budget_alerts_and_stops_nothing(bench: Bench) -> None:
    budget(bench, MOST / 100, is_hard=False)
    run(bench, 3)

    bench.answer(bench.claim())

    assert state(bench) == (spent_in_truth(bench), 0)
    assert alert_budgets(bench.engine) == 1
    assert alert_budgets(bench.engine) == 0


def test_a_new_budget_counts_what_the_month_has_cost_so_far(bench: Bench) -> None:
    run(bench, 3)
    bench.answer(bench.claim())

    budget(bench, Decimal(1))

    assert state(bench) == (spent_in_truth(bench), 0)


def test_what_a_tenant_has_paid_ahead_is_all_that_it_can_spend(bench: Bench) -> None:
    with transaction(bench.engine) as session:
        make_prepaid(session, bench.tenant.id, "USD", 2 * MOST)
    batch_id = run(bench, 5)

    bench.answer(bench.claim())

    assert nothing_to_claim(bench)
    assert 0 < spent_in_truth(bench) < 2 * MOST
    assert bench.batch(batch_id).num_succeeded == 2


def test_credit_that_is_granted_later_lets_a_prepaid_tenant_go_on(bench: Bench) -> None:
    with transaction(bench.engine) as session:
        make_prepaid(session, bench.tenant.id, "USD", Decimal(0))
    batch_id = run(bench, 2)
    assert nothing_to_claim(bench)
    assert resume_paused(bench.engine) == 0

    with transaction(bench.engine) as session:
        grant_credit(session, bench.tenant.id, amount=Decimal(1), currency="USD", reason="a transfer")

    assert resume_paused(bench.engine) == 1
    assert bench.claim().batch_id == batch_id


def test_what_a_slice_costs_counts_in_the_month_of_its_claim(bench: Bench) -> None:
    budget(bench, Decimal(1))
    run(bench, 1)
    claimed = bench.claim()
    for table in ("holds", "budget_uses"):
        bench.execute(f"UPDATE {table} SET period_start = period_start - interval '1 month'")

    bench.answer(claimed)

    [(spent, held)] = sql(bench.engine, "SELECT spent, held FROM budget_uses")
    assert (Decimal(spent), Decimal(held)) == (spent_in_truth(bench), 0)


def test_many_submitters_and_groups_never_pass_a_hard_limit(
    database: Engine, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 submitters at once, eight groups that record, lose and give back, and a limit for a part of the work."""
    monkeypatch.setenv(f"{PREFIX}SLICE_REQUESTS", "4")
    get_settings.cache_clear()
    bench = Bench.make(database, tmp_path / "model")
    limit = 64 * MOST
    budget(bench, limit)
    preparing = threading.Semaphore(2)  # as in a control worker

    def submit(_: int) -> None:
        batch_id = bench.submit(lines(6))
        with preparing:
            assert prepare(batch_id, bench.engine) is BatchStatus.IN_PROGRESS

    def work(number: int) -> None:
        chance = random.Random(number)
        while True:
            is_all_submitted = all(future.done() for future in submitting)
            with bench.engine.begin() as conn:
                claimed = claim_slice(conn, model=MODEL, group_id=f"group-{number}", lease_seconds=60)
            if claimed is None:
                if resume_paused(bench.engine) == 0 and is_all_submitted:
                    return
                continue
            match chance.randrange(4):
                case 0:
                    with bench.engine.begin() as conn:
                        return_slice(conn, claimed)
                case 1:
                    bench.answer(claimed, 1)
                    bench.execute("UPDATE slices SET lease_expires_at = now() WHERE id = :id", id=claimed.id)
                    sweeping.take_back_lost_slices(bench.engine)
                case 2:
                    bench.answer(claimed, kind=OutcomeKind.FAILED)
                case _:
                    bench.answer(claimed)

    with ThreadPoolExecutor(72) as pool:
        submitting = [pool.submit(submit, number) for number in range(64)]
        working = [pool.submit(work, number) for number in range(8)]
        for future in submitting + working:
            future.result(300)

    spent, held = state(bench)
    assert spent == spent_in_truth(bench)
    assert limit - MOST < spent <= limit
    assert held == 0
    assert sql(bench.engine, "SELECT * FROM holds") == []
    assert audit(bench.engine).violations == []
