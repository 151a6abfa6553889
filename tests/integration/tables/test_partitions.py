"""What is kept of each request lies by the month in which it was planned."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from older_usage import write_as_older_groups
from seeds import sql
from sqlalchemy import Engine
from submitting import Bench, at_once

from pipeline.jobs import outbox
from pipeline.jobs.audit import audit
from pipeline.jobs.partitioning import make_partitions
from pipeline.tables import BatchStatus
from pipeline.tables.migrating import alembic_config
from pipeline.tables.partitions import PARTITIONED_TABLES

THIS_MONTH = "to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM')"


@pytest.fixture
def bench(database: Engine, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(outbox, "publish_soon", lambda *_: None)
    return Bench.make(database, tmp_path / "model")


def partitions_of(database: Engine, table: str) -> list[str]:
    return [name for (name,) in sql(database, f"SELECT DISTINCT tableoid::regclass::text FROM {table} ORDER BY 1")]


def drop_partitions(database: Engine) -> None:
    """Of this month, as if nobody had made any for months."""
    [[month]] = sql(database, f"SELECT {THIS_MONTH}")
    for table in PARTITIONED_TABLES:
        sql(database, f"DROP TABLE partitions.{table}_{month}")


def test_all_that_hangs_on_a_request_is_in_the_partitions_of_its_month(bench: Bench) -> None:
    bench.run()
    bench.answer(bench.claim())
    write_as_older_groups(bench.engine)
    [[month]] = sql(bench.engine, f"SELECT {THIS_MONTH}")
    for table in PARTITIONED_TABLES:
        assert partitions_of(bench.engine, table) == [f"partitions.{table}_{month}"]


def test_an_answer_that_comes_in_a_later_month_lies_with_its_request(bench: Bench) -> None:
    bench.run()
    sql(bench.engine, "UPDATE requests SET id = id - (request_month(now()) << 40)")  # of January 2020 and before
    bench.answer(bench.claim())
    write_as_older_groups(bench.engine, "mod(request_id, 3) = 1")
    for table in PARTITIONED_TABLES:
        assert partitions_of(bench.engine, table) == [f"partitions.{table}_before"]
    assert sql(
        bench.engine,
        "SELECT DISTINCT date_trunc('hour', now(), 'UTC') = starts_at FROM usage_rollups WHERE period = 'hour'",
    ) == [(True,)]


def test_partitions_that_nobody_has_made_are_made_before_a_batch_is_planned(bench: Bench) -> None:
    drop_partitions(bench.engine)
    batch_id = bench.run()
    assert bench.batch(batch_id).status is BatchStatus.IN_PROGRESS
    assert bench.batch(batch_id).num_requests == 3


def test_partitions_are_made_once_by_however_many(database: Engine) -> None:
    drop_partitions(database)
    at_once(lambda: make_partitions(database), 3)
    assert make_partitions(database) == 0
    assert make_partitions(database, months_ahead=5) == 2
    [[num_partitions]] = sql(database, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'requests'::regclass")
    assert num_partitions == 1 + 6, "those of before, and of six months"


def test_nobody_waits_while_partitions_are_made(bench: Bench) -> None:
    bench.run()
    claimed = bench.claim()
    with bench.engine.begin() as conn:
        conn.exec_driver_sql("SELECT make_request_partitions(request_month(now()) + 9)")
        bench.answer(claimed)  # with a limit of its own for locks


def test_a_line_and_a_custom_id_are_of_one_request_of_their_batch(bench: Bench) -> None:
    bench.run()
    columns = "batch_id, slice_id, custom_id, prompt_token_ids, num_prompt_tokens, params"
    for changed in ("line + 100, custom_id", "line, custom_id || 'x'"):
        with pytest.raises(Exception, match="duplicate key"):
            sql(
                bench.engine,
                f"INSERT INTO requests (line, {columns.replace('custom_id', 'custom_id')})"
                f" SELECT {changed.split(', ')[0]}, batch_id, slice_id, {changed.split(', ')[1]}, prompt_token_ids,"
                " num_prompt_tokens, params FROM requests LIMIT 1",
            )


def test_rows_survive_the_way_back_to_one_table_and_forth_again(bench: Bench) -> None:
    bench.run(num_requests=4)
    claimed = bench.claim()
    bench.answer(claimed, 2)
    counts = "SELECT (SELECT count(*) FROM requests), (SELECT count(*) FROM results)"
    before = sql(bench.engine, counts)
    of_views = {view: f"SELECT * FROM {view} ORDER BY request_id, meter" for view in ("metered_usage", "rated_usage")}
    used = {view: sql(bench.engine, query) for view, query in of_views.items()}
    config = alembic_config(bench.engine.url.render_as_string(hide_password=False))

    command.downgrade(config, "0007")
    assert sql(bench.engine, counts) == before
    assert sql(bench.engine, "SELECT count(*) FROM rated_lines") == [(6,)], "what was in rows of results"
    [[largest]] = sql(bench.engine, "SELECT max(id & ((1::bigint << 40) - 1)) FROM requests")
    # Ids go on where they were, without the month.
    [[first]] = sql(
        bench.engine,
        "INSERT INTO requests (batch_id, slice_id, line, custom_id, prompt_token_ids, num_prompt_tokens, params)"
        " SELECT batch_id, slice_id, line + 100, custom_id || 'x', prompt_token_ids, num_prompt_tokens, params"
        " FROM requests LIMIT 1 RETURNING id",
    )
    assert first == largest + 1
    sql(bench.engine, "DELETE FROM requests WHERE id = :id", id=first)

    bench.engine.dispose()
    command.upgrade(config, "head")
    assert sql(bench.engine, counts) == before
    assert {view: sql(bench.engine, query) for view, query in of_views.items()} == used
    bench.answer(claimed)
    assert [found for found in audit(bench.engine).findings if found.violations] == []
