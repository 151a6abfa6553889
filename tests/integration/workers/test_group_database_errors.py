"""PostgreSQL is there and refuses: deadlocks, locks that are not given, and no connection to be had."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psycopg
from running_gateways import error_of, new_tenant, serve
from running_groups import ScriptedEngine, make_settings, running_group, wait_for
from seeds import SeededTenant, seed_batch, sql
from sqlalchemy import Engine, event

from pipeline.gateway import create_app
from pipeline.jobs.audit import audit
from pipeline.jobs.finalizing import finalize
from pipeline.settings import get_settings
from pipeline.tables.session import make_engine


def plain_connection() -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(get_settings().database_url.get_secret_value().replace("+psycopg", ""))


def check(database: Engine, batch_id: str, num_requests: int) -> None:
    finalize(batch_id, database)
    assert sql(database, "SELECT status, num_succeeded FROM batches") == [("completed", num_requests)]
    assert audit(database).violations == []


def test_a_deadlock_costs_the_group_a_second_try(database: Engine, tenant: SeededTenant) -> None:
    batch_id = seed_batch(database, tenant, [4, 4])
    sql(database, "ALTER DATABASE " + str(database.url.database) + " SET deadlock_timeout = '100ms'")
    database.dispose()
    engine = ScriptedEngine(answers=False)
    with running_group(database, engine, make_settings(lease_seconds=3600.0)), plain_connection() as other:
        wait_for(lambda: len(engine.running) == 8)
        # The order of the service is slices, requests, batches; this is the other way round.
        other.execute("SET deadlock_timeout = '1h'")  # so that the group is the one that is refused
        other.execute("UPDATE batches SET metadata = metadata")
        engine.answers = True
        wait_for(lambda: sql(database, "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
        other.execute("UPDATE slices SET position = position")
        other.commit()
        wait_for(lambda: sql(database, "SELECT sum(num_unfinished) FROM slices") == [(0,)])
    assert sql(database, "SELECT deadlocks > 0 FROM pg_stat_database WHERE datname = current_database()") == [(True,)]
    check(database, batch_id, 8)


def test_a_lock_that_is_not_given_in_time_is_asked_for_again(database: Engine, tenant: SeededTenant) -> None:
    batch_id = seed_batch(database, tenant, [4])
    impatient = make_engine(get_settings().database_url.get_secret_value())

    @event.listens_for(impatient, "connect")
    def hurry(connection: psycopg.Connection[object], _: object) -> None:
        connection.execute("SET lock_timeout = '50ms'")
        connection.commit()

    engine = ScriptedEngine(answers=False)
    with running_group(impatient, engine, make_settings(lease_seconds=3600.0)), plain_connection() as other:
        wait_for(lambda: len(engine.running) == 4)
        other.execute("SELECT FROM slices FOR UPDATE")
        before = _refusals(database)
        engine.answers = True
        wait_for(lambda: _refusals(database) > before + 2)
        other.rollback()
        wait_for(lambda: sql(database, "SELECT sum(num_unfinished) FROM slices") == [(0,)])
    impatient.dispose()
    check(database, batch_id, 4)


def _refusals(database: Engine) -> int:
    ((num_rolled_back,),) = sql(
        database, "SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()"
    )
    return int(num_rolled_back)


def test_without_a_free_connection_the_gateway_says_try_again_and_nothing_is_half_done(
    database: Engine, redis_url: str, log_path: Path
) -> None:
    with serve(create_app(answer_seconds=3.0)) as address, ExitStack() as taken:
        tenant = new_tenant(address, "acme")
        file_id = tenant.client.files.create(file=("in.jsonl", b"{}\n"), purpose="batch").id
        body = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
        headers = {"Idempotency-Key": "one"}

        connections = [database.connect() for _ in range(20)]
        with ThreadPoolExecutor(5) as clients:
            answers = list(clients.map(lambda _: tenant.http.post("/v1/batches", json=body, headers=headers), range(5)))
        for answer in answers:
            assert answer.status_code == 503
            assert answer.headers["retry-after"]
            assert error_of(answer)["code"] == "service_unavailable"

        for connection in connections:
            connection.close()
        answer = tenant.http.post("/v1/batches", json=body, headers=headers)
        assert answer.status_code == 200
        taken.callback(tenant.http.close)
        taken.callback(tenant.client.close)
    assert sql(database, "SELECT count(*) FROM batches") == [(1,)]
