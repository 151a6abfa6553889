from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flaky_proxy import FlakyProxy
from running_groups import ScriptedEngine, make_settings, running_group, wait_for
from seeds import seed_batch, seed_model, seed_tenant, sql
from sqlalchemy import Engine
from tokenizer_folders import byte_level

from pipeline.embedded import EmbeddedPostgres, new_password
from pipeline.tables.migrating import migrate
from pipeline.tables.session import make_engine
from workers.backends.echo import EchoEngine


@pytest.fixture
def postgres(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[EmbeddedPostgres]:
    """A server of the test's own, to be stopped and cut off."""
    folder = tmp_path_factory.mktemp("own-postgres")
    server = EmbeddedPostgres(folder / "data", new_password(), folder / "postgres.log", fsync=False)
    server.start()
    migrate(server.url)
    yield server
    server.stop()


@pytest.fixture
def own_database(postgres: EmbeddedPostgres) -> Iterator[Engine]:
    engine = make_engine(postgres.url)
    seed_model(engine)
    yield engine
    engine.dispose()


def check_books(database: Engine, num_requests: int) -> None:
    assert sql(database, "SELECT count(*) FROM requests WHERE outcome = 'succeeded'") == [(num_requests,)]
    assert sql(database, "SELECT count(*) FROM results") == [(num_requests,)]
    assert sql(database, "SELECT count(*) FROM metered_usage") == [(2 * num_requests,)]
    assert sql(database, "SELECT count(*) FROM usage_prices") == [(2 * num_requests,)]
    assert sql(database, "SELECT num_succeeded FROM batches") == [(num_requests,)]
    assert sql(database, "SELECT coalesce(sum(num_unfinished), 0) FROM slices") == [(0,)]
    assert sql(
        database,
        "SELECT (SELECT sum(amount) FROM usage_prices) - (SELECT sum(amount) FROM ledger_entries WHERE amount > 0)",
    ) == [(0,)]


def test_a_group_outlives_a_restart_of_postgresql(
    postgres: EmbeddedPostgres, own_database: Engine, tmp_path: Path
) -> None:
    seed_batch(own_database, seed_tenant(own_database), [60, 60, 60, 60], params={"max_tokens": 2})
    engine = EchoEngine(byte_level(tmp_path / "tiny"), tokens_per_second=200)
    settings = make_settings(lease_seconds=60.0, record_requests=8, group_slices=2)
    with running_group(own_database, engine, settings):
        wait_for(lambda: sql(own_database, "SELECT count(*) FROM results")[0][0] >= 20)
        before = engine.health().num_steps
        postgres.stop()
        # It goes on with what it has, and keeps the outcomes.
        wait_for(lambda: engine.health().num_steps > before + 8)
        postgres.start()
        wait_for(lambda: sql(own_database, "SELECT sum(num_unfinished) FROM slices") == [(0,)], timeout=60)
    check_books(own_database, 240)


def test_a_commit_of_unknown_fate_is_neither_lost_nor_doubled(postgres: EmbeddedPostgres, own_database: Engine) -> None:
    seed_batch(own_database, seed_tenant(own_database), [5, 5])
    proxy = FlakyProxy(postgres.port)
    through_proxy = make_engine(postgres.url.replace(f":{postgres.port}/", f":{proxy.port}/"))
    engine = ScriptedEngine(answers=False)
    # A long lease and no polling: the next COMMIT through the proxy is that of the recorder.
    settings = make_settings(lease_seconds=3600.0, record_seconds=0.05)
    try:
        with running_group(through_proxy, engine, settings):
            wait_for(lambda: len(engine.running) == 10)
            proxy.lose_next_commit()
            engine.answers = True
            wait_for(lambda: sql(own_database, "SELECT sum(num_unfinished) FROM slices") == [(0,)])
            wait_for(lambda: proxy.num_lost == 1)
    finally:
        through_proxy.dispose()
        proxy.close()
    check_books(own_database, 10)
    assert sql(own_database, "SELECT count(*) FROM outbox WHERE task = 'control.finalize'") <= [(1,)]


def test_a_claim_whose_answer_was_lost_is_found_again(postgres: EmbeddedPostgres, own_database: Engine) -> None:
    proxy = FlakyProxy(postgres.port)
    through_proxy = make_engine(postgres.url.replace(f":{postgres.port}/", f":{proxy.port}/"))
    engine = ScriptedEngine()
    # Nothing but a ticket has a slice claimed, and nothing but time would end its lease.
    settings = make_settings(lease_seconds=3600.0, sweep_seconds=3600.0)
    try:
        with running_group(through_proxy, engine, settings) as group, ThreadPoolExecutor(1) as tickets:
            wait_for(lambda: sql(own_database, "SELECT state FROM groups") == [("ready",)])
            seed_batch(own_database, seed_tenant(own_database), [5])
            proxy.lose_next_commit()
            assert tickets.submit(group.run_ticket).result(30)["succeeded"] == 5
            assert proxy.num_lost == 1
    finally:
        through_proxy.dispose()
        proxy.close()
    check_books(own_database, 5)
    assert sql(own_database, 'SELECT lease_epoch, "end" FROM attempts') == [(1, "finished")]
