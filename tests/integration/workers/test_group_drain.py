from __future__ import annotations

import threading
from pathlib import Path

import pytest
from running_groups import ScriptedEngine, make_settings, running_group, wait_for
from seeds import SeededTenant, seed_batch, seed_model, seed_tenant, sql
from sqlalchemy import Engine


@pytest.fixture
def tenant(database: Engine, redis_url: str) -> SeededTenant:
    seed_model(database)
    return seed_tenant(database)


def test_draining_finishes_what_runs_and_returns_the_rest(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [9])
    engine = ScriptedEngine(answers=False)
    with running_group(database, engine, make_settings(max_num_sequences=4)) as group:
        wait_for(lambda: len(engine.running) == 5)
        group.drain()
        engine.answers = True
        group.stop()
        assert len(engine.submitted) == 5
    assert sql(database, "SELECT count(*) FROM results") == [(5,)]
    assert sql(database, "SELECT status, num_unfinished FROM slices") == [("pending", 4)]
    assert sql(database, 'SELECT "end", num_succeeded, num_wasted_tokens FROM attempts') == [("returned", 5, 0)]
    assert sql(database, "SELECT state, rank_pids FROM groups") == [("stopped", [])]


@pytest.mark.parametrize("hurry", [False, True])
def test_what_is_not_finished_in_time_is_waste_of_the_attempt(
    database: Engine, tenant: SeededTenant, hurry: bool
) -> None:
    seed_batch(database, tenant, [2])
    engine = ScriptedEngine(answers=False)
    settings = make_settings(drain_seconds=3600.0 if hurry else 0.0)
    with running_group(database, engine, settings) as group:
        wait_for(lambda: len(engine.running) == 2)
        group.drain()
        group.drain(hurry=hurry)
        group.stop()
    assert len(engine.aborted) == 2
    assert sql(database, "SELECT status, lease_epoch FROM slices") == [("pending", 1)]
    assert sql(database, 'SELECT "end", num_wasted_tokens FROM attempts') == [("returned", 8)]
    assert sql(database, "SELECT cause, sum(num_tokens) FROM waste GROUP BY cause") == [("drain", 8)]
    assert sql(database, "SELECT count(*) FROM requests WHERE outcome IS NULL") == [(2,)]


def test_tickets_end_when_the_group_drains(database: Engine, tenant: SeededTenant, tmp_path: Path) -> None:
    seed_batch(database, tenant, [1, 1])
    engine = ScriptedEngine(answers=False)
    with running_group(database, engine, make_settings(sweep_seconds=3600.0, group_slices=1)) as group:
        ends: list[object] = []
        tickets = [threading.Thread(target=lambda: ends.append(group.run_ticket()["end"])) for _ in range(2)]
        for ticket in tickets:
            ticket.start()
        wait_for(lambda: len(engine.running) == 1)
        group.drain(hurry=True)
        for ticket in tickets:
            ticket.join(60)
        assert sorted(map(str, ends)) == ["draining", "returned"]


def test_another_group_goes_on_with_what_was_returned(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [8, 8])
    first = ScriptedEngine(answers=False)
    with running_group(database, first, make_settings(drain_seconds=0.0)) as group:
        wait_for(lambda: len(first.running) == 16)
        group.stop()
    with running_group(database, ScriptedEngine(), group_id="group-1@here"):
        wait_for(lambda: sql(database, "SELECT count(*) FROM results") == [(16,)])
    assert sql(database, "SELECT DISTINCT lease_epoch, group_id FROM results") == [(2, "group-1@here")]
