"""Bring a database to the schema of this version."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

import migrations
from pipeline.tables.session import make_engine


def alembic_config(database_url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["database_url"] = database_url
    return config


def migrate(database_url: str) -> None:
    """Run every revision that is missing. Safe if two do it at once."""
    command.upgrade(alembic_config(database_url), "head")


def describe_lack(current: str | None, wanted: str | None) -> str | None:
    """Why processes of this version can't use a database of this revision; None if they can.

    One that is newer will do: a revision only adds to what the version before it uses, so that processes of both run
    beside each other while a new version is rolled out.
    """
    is_newer = current is not None and wanted is not None and current > wanted  # revisions are numbered
    if current == wanted or is_newer:
        return None
    return f"schema {current or 'missing'}, {wanted} wanted"


def revisions(database_url: str) -> tuple[str | None, str | None]:
    """The revision that the database has, and the one that this version wants."""
    engine = make_engine(database_url, pool_size=1)
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    engine.dispose()
    return current, ScriptDirectory.from_config(alembic_config(database_url)).get_current_head()
