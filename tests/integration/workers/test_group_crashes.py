from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from running_groups import ScriptedEngine, make_settings, running_group, wait_for
from seeds import SeededTenant, seed_batch, seed_model, seed_tenant, sql
from sqlalchemy import Engine

from pipeline.tokenization import pack_token_ids
from workers.backends.protocol import EngineState

POISON = 666


@pytest.fixture
def tenant(database: Engine, redis_url: str) -> SeededTenant:
    seed_model(database)
    return seed_tenant(database)


def poison(database: Engine, line: int) -> None:
    sql(database, "UPDATE requests SET prompt_token_ids = :p WHERE line = :line", p=pack_token_ids([POISON]), line=line)


def num_unfinished(database: Engine) -> int:
    return int(sql(database, "SELECT count(*) FROM requests WHERE outcome IS NULL")[0][0])


def test_requests_of_a_crashed_engine_run_again(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [4])
    engine = ScriptedEngine(answers=False)
    with running_group(database, engine):
        wait_for(lambda: len(engine.running) == 4)
        with engine.changed:
            engine.state = EngineState.RESTARTING
            engine.crash()
        wait_for(lambda: sql(database, "SELECT sum(num_crash_exposures) FROM requests") == [(4,)])
        assert engine.running == {}
        engine.answers = True
        engine.state = EngineState.READY
        wait_for(lambda: num_unfinished(database) == 0)
    assert sql(database, "SELECT DISTINCT outcome FROM requests") == [("succeeded",)]
    assert sql(database, "SELECT lease_epoch, num_wasted_tokens FROM attempts") == [(1, 12)]
    assert sql(database, "SELECT cause, sum(num_tokens) FROM waste GROUP BY cause") == [("crash", 12)]


def test_a_poisonous_request_fails_alone(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [6, 6])
    poison(database, 5)
    engine = ScriptedEngine(poison=POISON)
    with running_group(database, engine):
        wait_for(lambda: num_unfinished(database) == 0)
    outcomes = sql(database, "SELECT line, error_code FROM requests WHERE outcome <> 'succeeded'")
    assert outcomes == [(5, "engine_crashed")]
    assert sql(database, "SELECT error_message FROM requests WHERE line = 5") == [
        ("The engine crashed 3 times while it worked on this request.",)
    ]
    # The third time it ran alone: nobody else was exposed a third time.
    assert len(engine.crashes) == 3
    assert len(engine.crashes[2]) == 1
    assert sql(database, "SELECT max(num_crash_exposures) FROM requests WHERE line <> 5") <= [(2,)]
    assert sql(database, "SELECT count(*) FROM metered_usage") == [(22,)]


def test_suspects_of_another_group_run_alone_too(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [4])
    sql(database, "UPDATE requests SET num_crash_exposures = 2 WHERE line IN (2, 4)")
    engine = ScriptedEngine(answers=False)
    with running_group(database, engine):
        wait_for(lambda: len(engine.running) == 1)
        assert [request.id.split(".")[0] for request in engine.submitted] == [
            str(sql(database, "SELECT id FROM requests WHERE line = 2")[0][0])
        ]
        engine.answers = True
        wait_for(lambda: num_unfinished(database) == 0)


def test_a_group_whose_engine_is_away_takes_no_tickets_from_others(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [1])
    engine = ScriptedEngine()
    with ThreadPoolExecutor() as threads:
        with running_group(database, engine, make_settings(sweep_seconds=3600.0)) as group:
            engine.state = EngineState.RESTARTING
            ticket = threads.submit(group.run_ticket)
            assert not wait([ticket], timeout=0.5).done
            engine.state = EngineState.READY
            assert ticket.result(30)["end"] == "finished"
            engine.state = EngineState.DEGRADED
            ticket = threads.submit(group.run_ticket)
            assert not wait([ticket], timeout=0.5).done
        assert ticket.result(30)["end"] == "draining"


def test_a_degraded_engine_gives_its_slices_back_and_claims_nothing(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [2, 2])
    engine = ScriptedEngine(answers=False)
    with running_group(database, engine, make_settings()):
        wait_for(lambda: len(engine.running) == 4)
        with engine.changed:
            engine.state = EngineState.DEGRADED
            engine.crash()
        wait_for(lambda: sql(database, "SELECT count(*) FROM slices WHERE status = 'pending'") == [(2,)])
        wait_for(lambda: sql(database, "SELECT state, reason FROM groups") == [("degraded", "It crashed too often.")])
    assert sql(database, 'SELECT "end", count(*) FROM attempts GROUP BY 1') == [("returned", 2)]


def test_a_cancelled_batch_ends_even_if_the_engine_crashes(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [3])
    engine = ScriptedEngine(answers=False)
    with running_group(database, engine):
        wait_for(lambda: len(engine.running) == 3)
        sql(database, "UPDATE batches SET status = 'cancelling'")
        with engine.changed:
            engine.crash()
        wait_for(lambda: num_unfinished(database) == 0)
    assert sql(database, "SELECT DISTINCT outcome FROM requests") == [("cancelled",)]
