from __future__ import annotations

import json
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from running_groups import GROUP, ScriptedEngine, make_settings, running_group, wait_for
from seeds import MODEL, SeededTenant, seed_batch, seed_model, seed_tenant, sql
from sqlalchemy import Engine
from tokenizer_folders import byte_level

from workers import recorder
from workers.backends.echo import EchoEngine
from workers.backends.protocol import EngineStartError, EngineState


@pytest.fixture
def tenant(database: Engine, redis_url: str) -> SeededTenant:
    seed_model(database)
    return seed_tenant(database)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level(tmp_path_factory.mktemp("model") / "tiny")


def num_unfinished(database: Engine) -> int:
    return int(sql(database, "SELECT count(*) FROM requests WHERE outcome IS NULL")[0][0])


def check_books(database: Engine) -> None:
    """What must hold whatever happened."""
    assert sql(database, "SELECT count(*) FROM requests WHERE outcome = 'succeeded'") == sql(
        database, "SELECT count(*) FROM results"
    )
    assert sql(
        database,
        "SELECT count(*) FROM results a"
        " WHERE 2 <> (SELECT count(*) FROM metered_usage u WHERE u.request_id = a.request_id)",
    ) == [(0,)]
    assert sql(database, "SELECT coalesce(sum(amount), 0) FROM ledger_entries") == [(0,)]
    assert sql(database, "SELECT coalesce(sum(amount), 0) FROM usage_prices") == sql(
        database, "SELECT coalesce(sum(amount), 0) FROM ledger_entries WHERE amount > 0"
    )
    assert (
        sql(
            database,
            """
        SELECT b.id FROM batches b
        WHERE num_succeeded <> (SELECT count(*) FROM requests r WHERE batch_id = b.id AND outcome = 'succeeded')
           OR num_unsuccessful <> (SELECT count(*) FROM requests r WHERE batch_id = b.id AND outcome <> 'succeeded')
        """,
        )
        == []
    )
    assert (
        sql(
            database,
            """
        SELECT s.id FROM slices s
        WHERE num_unfinished <> (SELECT count(*) FROM requests r WHERE slice_id = s.id AND outcome IS NULL)
           OR (num_unfinished = 0) <> (status = 'done')
        """,
        )
        == []
    )


def test_a_batch_is_answered_recorded_and_reported_for_closing(
    database: Engine, tenant: SeededTenant, folder: Path
) -> None:
    batch_id = seed_batch(database, tenant, [150, 70, 1], params={"max_tokens": 3})
    with running_group(database, EchoEngine(folder)):
        wait_for(lambda: num_unfinished(database) == 0)
        wait_for(lambda: sql(database, "SELECT 1 FROM slices HAVING bool_and(status = 'done')"))
    check_books(database)
    assert sql(database, "SELECT num_succeeded, num_prompt_tokens, num_completion_tokens FROM batches") == [
        (221, 4 * 221, 3 * 221)
    ]
    assert sql(database, 'SELECT DISTINCT "end", group_id FROM attempts') == [("finished", GROUP)]
    (body,) = sql(database, "SELECT body FROM results LIMIT 1")[0]
    assert json.loads(body)["usage"] == {
        "prompt_tokens": 4,
        "completion_tokens": 3,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert batch_id in str(sql(database, "SELECT id FROM batches"))


def test_a_ticket_stays_until_its_slice_ends(database: Engine, tenant: SeededTenant) -> None:
    batch_id = seed_batch(database, tenant, [2])
    engine = ScriptedEngine()
    with running_group(database, engine, make_settings(sweep_seconds=3600.0)) as group:
        summary = group.run_ticket()
        assert summary == {
            "slice": sql(database, "SELECT id FROM slices")[0][0],
            "batch": batch_id,
            "attempt": 1,
            "end": "finished",
            "succeeded": 2,
            "unsuccessful": 0,
            "completion_tokens": 2,
        }
        assert group.run_ticket() == {"slice": None, "end": "nothing to claim"}
    assert group.run_ticket() == {"slice": None, "end": "draining"}


def test_answers_that_are_long_together_are_recorded_apart(
    database: Engine, tenant: SeededTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "_MOST_CHARACTERS", 1)
    seed_batch(database, tenant, [5])
    with running_group(database, ScriptedEngine()):
        wait_for(lambda: num_unfinished(database) == 0)
    check_books(database)
    assert sql(database, "SELECT count(*) FROM ledger_transactions") == [(5,)]


def test_the_row_of_a_group_says_how_it_is(database: Engine, tenant: SeededTenant) -> None:
    row = "SELECT model, state, reason, pid > 0, rank_pids, info FROM groups"
    engine = ScriptedEngine()
    with running_group(database, engine):
        assert sql(database, row)[0][:5] == (MODEL, "ready", None, True, [11, 12])
        assert sql(database, row)[0][5]["engine"] == "test"
        assert sql(database, row)[0][5]["kv_tokens"] == 64
        engine.state = EngineState.RESTARTING
        wait_for(lambda: sql(database, row)[0][1] == "restarting")
        before = sql(database, "SELECT heartbeat_at FROM groups")
        wait_for(lambda: sql(database, "SELECT heartbeat_at FROM groups") > before)
    assert sql(database, row)[0][:5] == (MODEL, "stopped", None, True, [])
    assert sql(database, "SELECT path, context_length FROM served_models") == [("/models/tiny", 2048)]


def test_an_engine_that_does_not_start_is_told_to_sql(database: Engine, tenant: SeededTenant, tmp_path: Path) -> None:
    with pytest.raises(EngineStartError), running_group(database, EchoEngine(tmp_path)):
        pass
    ((state, reason),) = sql(database, "SELECT state, reason FROM groups")
    assert state == "stopped"
    assert "tokenizer.json" in reason


def test_a_group_holds_no_more_slices_than_it_may(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [1] * 5)
    engine = ScriptedEngine(answers=False)
    with running_group(database, engine, make_settings(group_slices=2)) as group:
        ticket = threading.Thread(target=group.run_ticket)
        ticket.start()
        wait_for(lambda: len(engine.submitted) == 2)
        assert sql(database, "SELECT count(*) FROM slices WHERE status = 'claimed'") == [(2,)]
        engine.answers = True
        wait_for(lambda: num_unfinished(database) == 0)
    ticket.join(60)


def test_the_engine_is_fed_in_planned_order_and_no_more_than_it_can_use(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [6, 6])
    engine = ScriptedEngine(answers=False)
    with running_group(database, engine, make_settings(max_num_sequences=4)):
        wait_for(lambda: len(engine.submitted) == 5)
        engine.answers = True
        wait_for(lambda: num_unfinished(database) == 0)
    ids = [int(request.id.split(".")[0]) for request in engine.submitted]
    assert ids == sorted(ids)


def test_a_request_with_more_choices_than_the_engine_runs_at_once_is_fed(
    database: Engine, tenant: SeededTenant
) -> None:
    seed_batch(database, tenant, [2], params={"max_tokens": 1, "n": 16})
    with running_group(database, ScriptedEngine(), make_settings(max_num_sequences=4)):
        wait_for(lambda: num_unfinished(database) == 0)


def test_seeds_repeat_over_attempts_and_prefixes_are_not_shared_between_tenants(
    database: Engine, tenant: SeededTenant
) -> None:
    other = seed_tenant(database, "other")
    seed_batch(database, tenant, [1])
    seed_batch(database, other, [1], params={"max_tokens": 1, "seed": 42})
    engines = ScriptedEngine(answers=False), ScriptedEngine()
    for engine in engines:
        with running_group(database, engine):
            wait_for(lambda engine=engine: len(engine.submitted) == 2)
    first, second = ({one.cache_salt: one for one in engine.submitted} for engine in engines)
    assert set(first) == {tenant.id, other.id}
    assert first[other.id].seed == 42
    assert first[tenant.id].seed == second[tenant.id].seed
    assert first[tenant.id].id != second[tenant.id].id


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ("UPDATE batches SET status = 'cancelling'", "cancelled"),
        ("UPDATE batches SET expires_at = now() - interval '1 s'", "expired"),
    ],
)
def test_a_batch_that_ends_early_keeps_what_is_finished(
    database: Engine, tenant: SeededTenant, folder: Path, change: str, outcome: str
) -> None:
    seed_batch(database, tenant, [400], params={"max_tokens": 4})
    engine = EchoEngine(folder, tokens_per_second=200)
    with running_group(database, engine, make_settings(max_num_sequences=16, record_requests=4)):
        wait_for(lambda: sql(database, "SELECT count(*) FROM results")[0][0] >= 8)
        sql(database, change)
        wait_for(lambda: num_unfinished(database) == 0)
        assert engine.load().num_waiting == 0
    check_books(database)
    counts = dict(sql(database, "SELECT outcome, count(*) FROM requests GROUP BY 1"))
    assert set(counts) == {"succeeded", outcome}
    assert counts["succeeded"] >= 8


def test_a_slice_that_was_lost_is_stopped_and_written_by_its_new_holder(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [3])
    engine = ScriptedEngine(answers=False)
    with running_group(database, engine, make_settings(sweep_seconds=3600.0)) as group:
        ends: list[dict[str, Any]] = []
        ticket = threading.Thread(target=lambda: ends.append(group.run_ticket()))
        ticket.start()
        wait_for(lambda: len(engine.submitted) == 3)
        sql(database, "UPDATE slices SET lease_epoch = lease_epoch + 1, status = 'pending'")
        wait_for(lambda: len(engine.aborted) == 3)
        ticket.join(60)
        assert ends[0]["end"] == "lost"
        engine.answers = True
        assert group.run_ticket()["attempt"] == 3
    check_books(database)
    assert sql(database, "SELECT DISTINCT lease_epoch FROM results") == [(3,)]
    wasted = "SELECT lease_epoch, cause, sum(num_tokens) FROM waste GROUP BY 1, 2"
    assert sql(database, wasted) == [(1, "lost_lease", 12)]
    assert sql(database, "SELECT num_wasted_tokens FROM attempts WHERE lease_epoch = 1") == [(12,)]


def test_answers_that_come_after_the_lease_was_lost_write_nothing(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [3])
    engine = ScriptedEngine(answers=False)
    # The heartbeat is too slow to hear of the loss: recording itself must notice.
    with running_group(database, engine, make_settings(lease_seconds=3600.0, sweep_seconds=3600.0)) as group:
        ticket = threading.Thread(target=group.run_ticket)
        ticket.start()
        wait_for(lambda: len(engine.submitted) == 3)
        sql(database, "UPDATE slices SET lease_epoch = lease_epoch + 1, status = 'pending'")
        engine.answers = True
        ticket.join(60)
        assert not ticket.is_alive()
    assert sql(database, "SELECT count(*) FROM results") == [(0,)]
    assert num_unfinished(database) == 3
    [(cause, num_tokens)] = sql(database, "SELECT cause, sum(num_tokens) FROM waste GROUP BY cause")
    assert (cause, num_tokens > 0) == ("lost_lease", True)


def test_answers_that_wait_to_be_recorded_when_the_lease_is_lost_are_waste(
    database: Engine, tenant: SeededTenant
) -> None:
    seed_batch(database, tenant, [3])
    engine = ScriptedEngine(answers=False)
    # Two run on, so that the answer waits for company, and the heartbeat is the first to hear of the loss.
    settings = make_settings(sweep_seconds=3600.0, record_seconds=60.0)
    with running_group(database, engine, settings) as group:
        ticket = threading.Thread(target=group.run_ticket)
        ticket.start()
        wait_for(lambda: len(engine.submitted) == 3)
        with engine.changed:
            engine.finish(next(iter(engine.running)))
        wait_for(lambda: not engine.outcomes)
        sql(database, "UPDATE slices SET lease_epoch = lease_epoch + 1, status = 'pending'")
        wait_for(lambda: len(engine.aborted) == 2)
        ticket.join(60)
        # Four tokens of each of the two, and the five of the answer.
        wait_for(lambda: sql(database, "SELECT sum(num_tokens) FROM waste WHERE cause = 'lost_lease'") == [(13,)])
    assert sql(database, "SELECT count(*) FROM results") == [(0,)]
    assert sql(database, "SELECT num_wasted_tokens FROM attempts") == [(13,)]


def test_a_group_that_claims_again_what_it_lost_goes_on_under_the_new_lease(
    database: Engine, tenant: SeededTenant
) -> None:
    seed_batch(database, tenant, [3])
    engine = ScriptedEngine(answers=False)
    # The heartbeat is too slow to hear of the loss before the second claim.
    settings = make_settings(lease_seconds=3600.0, sweep_seconds=3600.0)
    with running_group(database, engine, settings) as group:
        ends: dict[str, dict[str, Any]] = {}
        first = threading.Thread(target=lambda: ends.update(first=group.run_ticket()))
        first.start()
        wait_for(lambda: len(engine.submitted) == 3)
        sql(database, "UPDATE slices SET lease_epoch = lease_epoch + 1, status = 'pending'")
        second = threading.Thread(target=lambda: ends.update(second=group.run_ticket()))
        second.start()
        wait_for(lambda: len(engine.submitted) == 6)
        first.join(60)
        engine.answers = True
        second.join(60)
    assert (ends["first"]["end"], ends["second"]["end"]) == ("lost", "finished")
    assert len(engine.aborted) == 3
    check_books(database)
    assert sql(database, "SELECT DISTINCT lease_epoch FROM results") == [(3,)]


def test_a_group_that_starts_again_ends_its_former_leases(database: Engine, tenant: SeededTenant) -> None:
    seed_batch(database, tenant, [1], window=timedelta(hours=1))
    sql(
        database,
        "UPDATE slices SET status = 'claimed', lease_epoch = 1, group_id = :id,"
        " lease_expires_at = now() + interval '1 h'",
        id=GROUP,
    )
    with running_group(database, ScriptedEngine()):
        assert sql(database, "SELECT lease_expires_at <= clock_timestamp() FROM slices") == [(True,)]
