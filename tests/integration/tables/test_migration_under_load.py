"""`benchmarks/migration.py`, on fewer requests: a schema changes both ways while a group answers and others write."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from running_gateways import wait_for
from sqlalchemy import Engine

from benchmarks.migration import Writers, fill, measure
from benchmarks.next_schema import next_schema
from pipeline.embedded import EmbeddedPostgres
from pipeline.ids import new_id
from pipeline.tables.migrating import alembic_config, describe_lack, revisions

#: A machine that is busy with other tests is slower than the 1 s that the benchmark holds a migration to.
GENEROUS_SECONDS = 15.0


@pytest.fixture
def database_url(postgres_server: EmbeddedPostgres, settings_env: pytest.MonkeyPatch) -> str:
    """An empty database."""
    return postgres_server.create_database(new_id("migration"))


def test_a_migration_both_ways_fails_no_statement_and_keeps_no_one_waiting(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    results = measure(database_url, tmp_path, 20_000, quiet_seconds=0.2)  # raises where a statement beside it fails

    *changes, _control = results.phases
    assert max(phase.longest_seconds for phase in changes) < GENEROUS_SECONDS
    assert all(phase.num_writes for phase in changes)
    assert sum(phase.num_results for phase in changes if "a group answers" in phase.name) > 0
    print(*results.phases, sep="\n")


def test_a_schema_that_takes_away_what_others_use_is_noticed(database_url: str, tmp_path: Path) -> None:
    """What the writers are there for: the same meter sees a change that old processes can't live with."""
    command.upgrade(alembic_config(database_url), "head")
    fill(database_url, 1_000)
    with Writers(database_url, 1_000) as writers:
        (tmp_path / "versions").mkdir()
        coming = next_schema(database_url, tmp_path / "versions", contracting=True)
        command.upgrade(coming, "heads")
        wait_for(lambda: bool(writers.errors), 30)  # a busy machine may not have let them write since
    assert "num_crash_exposures" in writers.errors[0]


def test_processes_of_this_version_work_on_the_next_schema(database: Engine, tmp_path: Path) -> None:
    url = database.url.render_as_string(hide_password=False)
    command.upgrade(next_schema(url, tmp_path), "heads")
    assert (revisions(url)[0] or "").startswith("next_")
    assert describe_lack(*revisions(url)) is None
