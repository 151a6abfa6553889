from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from seeds import seed_model
from sqlalchemy import Engine, event
from tokenizer_folders import byte_level
from typer.testing import CliRunner, Result

from pipeline import doctor as examining
from pipeline.cli import app
from pipeline.processes import free_port
from pipeline.settings import PREFIX, get_settings
from pipeline.tables.session import get_engine


@pytest.fixture
def settings(settings_env: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing of this machine's is looked at: what the test does not start answers nowhere."""
    settings_env.setenv(PREFIX + "BASE_URL", f"http://127.0.0.1:{free_port()}/v1")
    settings_env.setenv(PREFIX + "FLOWER_PORT", str(free_port()))
    get_settings.cache_clear()
    return settings_env


def doctor(*args: str) -> Result:
    get_settings.cache_clear()
    return CliRunner().invoke(app, ["doctor", *args], catch_exceptions=False)


def findings(result: Result) -> dict[str, tuple[str, str]]:
    return {
        finding["subject"]: (finding["verdict"], f"{finding['detail']}. {finding['advice']}")
        for finding in json.loads(result.output)["findings"]
    }


def test_a_healthy_service_is_exit_code_0(
    database: Engine, redis_url: str, settings: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seed_model(database, path=str(byte_level(tmp_path / "tiny")))

    result = doctor("--json")

    found = findings(result)
    assert result.exit_code == 0
    assert {found[name][0] for name in ("versions", "settings", "postgresql", "redis", "storage", "torch")} == {"ok"}
    # What the service can run without is a warning, each with what to do.
    assert found["groups"] == (
        "warning",
        "none is ready. Start one with `ryzanstein worker MODEL`; batches wait until then.",
    )
    assert found["control"] == (
        "warning",
        "gave no answer within 3 s. Start `ryzanstein control`: without it batches are neither prepared nor ended.",
    )
    assert found["model tiny"][0] == found["gateway"][0] == found["flower"][0] == "warning"


def test_what_is_wrong_is_said_with_what_to_do_and_is_exit_code_1(settings: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings.setenv(PREFIX + "DATABASE_URL", f"postgresql://user:hunter2@127.0.0.1:{free_port()}/none")
    settings.setenv(PREFIX + "REDIS_URL", f"redis://:hunter2@127.0.0.1:{free_port()}/0")
    settings.setenv(PREFIX + "STORAGE_URL", f"file://{tmp_path}/file/blobs")
    get_engine.cache_clear()

    result = doctor("--model", str(tmp_path))

    assert result.exit_code == 1
    failed = [line for line in result.output.splitlines() if line.startswith("FAILED")]
    assert [line.split()[1] for line in failed] == ["postgresql:", "redis:", "storage:", "model"]
    assert "RYZANSTEIN_DATABASE_URL" in failed[0]
    assert "RYZANSTEIN_REDIS_URL" in failed[1]
    assert all("refused" in line for line in failed[:2]), "the reason is said"
    assert "no config.json" in failed[3]
    assert "hunter2" not in result.output


def test_a_database_without_the_schema_is_told_to_migrate(
    database: Engine, redis_url: str, settings: pytest.MonkeyPatch
) -> None:
    with database.begin() as conn:
        conn.exec_driver_sql("UPDATE alembic_version SET version_num = '0000'")

    result = doctor("--json")

    assert findings(result)["postgresql"][0] == "failed"
    assert "Run `ryzanstein migrate`" in findings(result)["postgresql"][1]


def test_a_database_that_is_lost_between_two_questions_is_a_finding(
    database: Engine, settings: pytest.MonkeyPatch
) -> None:
    num_asked = lost_at = 0

    def lose(conn: Any, *_: Any) -> None:
        nonlocal num_asked
        num_asked += 1
        if num_asked == lost_at:
            conn.connection.driver_connection.close()

    event.listen(Engine, "before_cursor_execute", lose)
    try:
        while num_asked >= lost_at:
            num_asked, lost_at = 0, lost_at + 1
            *_, last = examining._postgresql(get_settings())
            assert (last.subject == "postgresql" and last.verdict == "failed") == (num_asked >= lost_at)
    finally:
        event.remove(Engine, "before_cursor_execute", lose)
    assert lost_at > 5


def test_a_gateway_behind_a_proxy_that_is_away_is_a_finding(settings: pytest.MonkeyPatch) -> None:
    settings.setenv("http_proxy", f"http://user:hunter2@127.0.0.1:{free_port()}")
    settings.setenv(PREFIX + "BASE_URL", "http://gateway.invalid/v1")
    get_settings.cache_clear()
    found = next(examining._gateway(get_settings()))
    assert found.verdict == "warning"
    assert found.detail == "http://gateway.invalid/readyz does not answer through the proxy in http_proxy"
    assert "no_proxy" in str(found.advice)


def test_wrong_settings_end_the_examination(settings: pytest.MonkeyPatch) -> None:
    settings.setenv(PREFIX + "LEASE_SECONDS", "never")

    result = doctor()

    assert result.exit_code == 1
    assert "RYZANSTEIN_LEASE_SECONDS" in result.output.splitlines()[-1]


def test_all_wrong_settings_are_told_at_once(settings: pytest.MonkeyPatch) -> None:
    settings.setenv(PREFIX + "LEASE_SECONDS", "never")
    settings.setenv(PREFIX + "GATEWAY_PORT", "99999")
    settings.setenv(PREFIX + "LEASE_SECOND", "1")

    (verdict, told) = findings(doctor("--json"))["settings"]

    assert verdict == "failed"
    for name in ("LEASE_SECONDS:", "GATEWAY_PORT:", "LEASE_SECOND."):
        assert PREFIX + name in told


def test_doctor_of_a_folder_where_nothing_runs(settings: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--data-dir", str(tmp_path)])

    assert str(result.exception).startswith(f"No stack runs in {tmp_path}.")
