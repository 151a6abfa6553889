"""A migration beside processes that work: it never stands in their way, and gets its turn."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from alembic import command
from running_groups import wait_for
from seeds import sql
from sqlalchemy import Connection, Engine, inspect, text

from pipeline.tables.migrating import alembic_config, migrate, revisions
from pipeline.tables.short_locks import (
    LOCK_SECONDS,
    MIGRATION_LOCK,
    MigrationBlockedError,
    change_with_short_locks,
    wait_for_lock,
)


def _url(database: Engine) -> str:
    return database.url.render_as_string(hide_password=False)


@contextmanager
def table_in_use(database: Engine, table: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """A transaction that has read `table` and does not end."""
    with psycopg.connect(_url(database).replace("postgresql+psycopg", "postgresql"), application_name="report") as conn:
        conn.execute(f"SELECT count(*) FROM {table}")
        yield conn


def add_column(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE requests ADD COLUMN added integer"))
    connection.commit()


def test_a_migration_waits_for_a_long_transaction_and_lets_everyone_else_through(database: Engine) -> None:
    """Without a limit, the change would queue for the table, and everyone who comes after it queues behind it."""
    waits: list[float] = []
    with database.connect() as connection, table_in_use(database, "requests") as report:
        changing = threading.Thread(target=change_with_short_locks, args=(connection, lambda: add_column(connection)))
        changing.start()
        num_tries = 0
        while num_tries < 3:  # what the change asks for comes and goes
            wait_for(lambda: _is_waiting(database))
            began = time.monotonic()
            sql(database, "SELECT count(*) FROM requests")  # queues behind the change
            waits.append(time.monotonic() - began)
            num_tries += 1
        report.rollback()
        changing.join(30)
        assert not changing.is_alive()

    assert "added" in {column["name"] for column in inspect(database).get_columns("requests")}
    assert max(waits) < LOCK_SECONDS + 5, "generous: the machine may be busy"


def _is_waiting(database: Engine) -> bool:
    found = sql(
        database,
        "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'requests'::regclass AND mode = 'AccessExclusiveLock'"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    return bool(found)


def test_a_migration_that_gets_no_lock_says_who_is_in_the_way(database: Engine) -> None:
    with database.connect() as connection, table_in_use(database, "requests") as report:
        with pytest.raises(MigrationBlockedError) as caught:
            change_with_short_locks(connection, lambda: add_column(connection), patience=0.1)
        assert f"process {report.info.backend_pid} (report)" in str(caught.value)

        assert connection.execute(text("SELECT 1")).scalar_one() == 1


def test_another_error_is_not_tried_again(database: Engine) -> None:
    tries: list[int] = []

    def change() -> None:
        tries.append(1)
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with database.connect() as connection, pytest.raises(Exception, match="terminating connection"):
        change_with_short_locks(connection, change)
    assert tries == [1]


def test_revisions_are_applied_one_by_one_while_tables_are_in_use(database: Engine) -> None:
    url = _url(database)
    head = revisions(url)[1]
    command.downgrade(alembic_config(url), "0001")
    with table_in_use(database, "groups") as report:
        migrating = threading.Thread(target=migrate, args=(url,))
        migrating.start()
        # Those before it are there and usable, though a later one must wait.
        wait_for(lambda: revisions(url)[0] not in ("0001", head))
        report.rollback()
        migrating.join(30)
    assert revisions(url) == (head, head)


def test_who_migrates_second_waits_for_the_first(database: Engine) -> None:
    url = _url(database)
    command.downgrade(alembic_config(url), "0001")
    looks_for_lock = (
        "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_try_advisory_lock%'"
        " AND datname = current_database() AND pid <> :first AND pid <> pg_backend_pid()"
    )
    with database.connect() as first:
        wait_for_lock(first, MIGRATION_LOCK)
        [[pid]] = first.exec_driver_sql("SELECT pg_backend_pid()").all()
        first.commit()
        second = threading.Thread(target=migrate, args=(url,))
        second.start()
        wait_for(lambda: sql(database, looks_for_lock, first=pid))
        assert revisions(url)[0] == "0001"
        first.invalidate()  # it is done, and its connection closes
    second.join(30)
    assert len(set(revisions(url))) == 1


def test_two_who_migrate_at_once_do_not_wait_for_each_other_for_ever(database: Engine) -> None:
    """An index that is built beside everyone waits for every statement that was there before it, and has a snapshot."""
    url = _url(database)
    head = revisions(url)[1]
    command.downgrade(alembic_config(url), "0016")
    program = "import os; from pipeline.tables.migrating import migrate; migrate(os.environ['MIGRATED'])"
    both = [subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "MIGRATED": url}) for _ in range(2)]
    try:
        assert [one.wait(60) for one in both] == [0, 0]
    finally:
        for one in both:
            one.kill()
    assert revisions(url) == (head, head)
