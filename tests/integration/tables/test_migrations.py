"""The migrations make exactly the schema that the tables describe."""

from __future__ import annotations

from alembic import command
from sqlalchemy import Engine, inspect

from pipeline.tables import Base
from pipeline.tables.migrating import alembic_config, migrate, revisions


def _url(database: Engine) -> str:
    return database.url.render_as_string(hide_password=False)


def test_migrations_and_tables_agree(database: Engine) -> None:
    command.check(alembic_config(_url(database)))


def test_migrating_twice_changes_nothing(database: Engine) -> None:
    before = revisions(_url(database))

    migrate(_url(database))

    assert revisions(_url(database)) == before
    assert before[0] == before[1]


def test_every_migration_can_be_taken_back(database: Engine) -> None:
    command.downgrade(alembic_config(_url(database)), "base")

    assert set(inspect(database).get_table_names()) == {"alembic_version"}
    migrate(_url(database))
    assert set(inspect(database).get_table_names()) == {"alembic_version", *Base.metadata.tables}
