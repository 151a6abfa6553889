from __future__ import annotations

import pytest
from sqlalchemy import Engine
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import UserError
from pipeline.processes import free_port
from pipeline.settings import PREFIX, get_settings


def test_migrating_twice_says_so(database: Engine) -> None:
    with database.begin() as conn:
        conn.exec_driver_sql("DROP SCHEMA public, partitions CASCADE")
        conn.exec_driver_sql("CREATE SCHEMA public")

    first = CliRunner().invoke(app, ["migrate"], catch_exceptions=False)
    again = CliRunner().invoke(app, ["migrate"], catch_exceptions=False)

    assert first.output.startswith("Migrated from nothing to ")
    assert again.output.endswith(" already.\n")


def test_a_database_that_is_away_is_an_error_in_words(settings_env: pytest.MonkeyPatch) -> None:
    settings_env.setenv(PREFIX + "DATABASE_URL", f"postgresql://me:hunter2@127.0.0.1:{free_port()}/none")
    get_settings.cache_clear()

    result = CliRunner().invoke(app, ["migrate"])

    assert isinstance(result.exception, UserError)
    assert "Can't use PostgreSQL: " in str(result.exception)
    assert "hunter2" not in str(result.exception)
