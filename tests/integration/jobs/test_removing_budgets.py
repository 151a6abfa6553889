from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest
from budgeted_batches import budget, nothing_to_claim, run
from seeds import sql
from submitting import Bench

from pipeline.billing import holds
from pipeline.billing.budgets import remove_budget
from pipeline.errors import UserError
from pipeline.jobs.claiming import ClaimedSlice, return_slice
from pipeline.jobs.pausing import resume_paused
from pipeline.tables.session import transaction


def test_batches_go_on_when_their_budget_is_removed(bench: Bench) -> None:
    budget_id = budget(bench, Decimal(0))
    batch_id = run(bench, 3)
    assert nothing_to_claim(bench)

    with transaction(bench.engine) as session:
        remove_budget(session, budget_id)

    assert resume_paused(bench.engine) == 1
    assert bench.claim().batch_id == batch_id


def test_a_budget_is_removed_beside_a_claim_that_is_about_to_hold(bench: Bench) -> None:
    budget_id = budget(bench, Decimal(1))
    batch_id = run(bench, 1)
    bench.claim()
    [(slice_id, card_id)] = sql(bench.engine, "DELETE FROM holds RETURNING slice_id, rate_card_id")
    with ThreadPoolExecutor(1) as pool:
        with bench.engine.begin() as conn:
            uses = holds.lock_uses(conn, batch_id, "USD")
            removing = pool.submit(remove, bench, budget_id)
            wait_for_a_lock(bench, removing)
            conn.exec_driver_sql("SET LOCAL lock_timeout = '200ms'")  # less than what ends a deadlock
            holds.take(conn, slice_id, uses, Decimal("0.1"), card_id)
        removing.result()
    assert sql(bench.engine, "SELECT (SELECT count(*) FROM holds), (SELECT count(*) FROM budget_uses)") == [(0, 0)]


def test_a_budget_is_removed_beside_a_slice_that_is_given_back(bench: Bench) -> None:
    budget_id = budget(bench, Decimal(1))
    batch_id = run(bench, 1)
    claimed = bench.claim()
    with ThreadPoolExecutor(2) as pool:
        with bench.engine.begin() as conn:
            holds.lock_uses(conn, batch_id, "USD")
            removing = pool.submit(remove, bench, budget_id)
            wait_for_a_lock(bench, removing)
            returning = pool.submit(give_back, bench, claimed)
            wait_for_a_lock(bench, returning, 2)
        assert returning.result()
        removing.result()
    assert sql(bench.engine, "SELECT status FROM slices") == [("pending",)]


def test_of_two_who_remove_a_budget_at_once_the_second_is_told_that_there_is_none(bench: Bench) -> None:
    budget_id = budget(bench, Decimal(1))
    with ThreadPoolExecutor(1) as pool:
        with transaction(bench.engine) as session:
            remove_budget(session, budget_id)
            second = pool.submit(remove, bench, budget_id)
            wait_for_a_lock(bench, second)
        with pytest.raises(UserError, match="There is no budget"):
            second.result()


def remove(bench: Bench, budget_id: str) -> None:
    with transaction(bench.engine) as session:
        remove_budget(session, budget_id)


def give_back(bench: Bench, claimed: ClaimedSlice) -> bool:
    with bench.engine.begin() as conn:
        return return_slice(conn, claimed)


def wait_for_a_lock(bench: Bench, waiting: Future[Any], number: int = 1) -> None:
    while len(sql(bench.engine, "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'")) < number:
        assert not waiting.done()
