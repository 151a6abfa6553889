"""The report as a whole, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from seeds import seed_tenant
from sqlalchemy import Engine
from typer.testing import CliRunner, Result

from pipeline.cli import app
from pipeline.compliance.controls import CONTROLS, Framework
from pipeline.compliance.markdown import clause_table
from pipeline.processes import free_port
from pipeline.settings import PREFIX, get_settings
from pipeline.tables.session import get_engine

PAGE = Path(__file__).parents[2] / "docs" / "security.md"


def report(*args: str) -> Result:
    get_settings.cache_clear()
    result = CliRunner().invoke(app, ["compliance", "report", *args], catch_exceptions=False)
    assert result.exit_code == 0, "it is a report and no gate"
    return result


def test_each_control_says_what_it_does_whom_it_serves_and_what_is_missing(database: Engine, redis_url: str) -> None:
    seed_tenant(database)

    made = json.loads(report("--json").stdout)

    assert [control["id"] for control in made["controls"]] == [control.id for control in CONTROLS]
    for control in made["controls"]:
        assert control["statement"]
        assert any(control["clauses"].values())
        assert control["evidence"] or control["missing"] or control["duties"]
    states = {control["id"]: control["state"] for control in made["controls"]}
    assert states["operator-access"] == "gap"  # the tests' servers are used by their superusers
    assert states["minimal-exposure"] == "met"
    assert states["incidents"] == "met in part"
    named = [one for control in made["controls"] for one in control["evidence"] if one["state"] == "gap"]
    assert made["summary"]["gaps"] == len(named) > 0
    assert all(one["advice"] for one in named)


def test_the_page_begins_with_every_gap_and_ends_with_every_clause(
    database: Engine, redis_url: str, tmp_path: Path
) -> None:
    page = tmp_path / "report.md"

    said = report("--output", str(page)).stdout

    text = page.read_text()
    assert said.startswith(f"{page}: {len(CONTROLS)} controls: ")
    assert "## Gaps that a setting or a person closes\n\n- The role ryzanstein is a superuser" in text
    for control in CONTROLS:
        assert f"### {control.title}\n" in text
        for missing in control.missing:
            assert text.count(missing) == 2
    assert "| HIPAA | § 164.312(b) | traces (" in text


def test_it_says_what_it_could_not_look_at_where_the_servers_are_away(settings_env: pytest.MonkeyPatch) -> None:
    settings_env.setenv(PREFIX + "DATABASE_URL", f"postgresql+psycopg://u:hunter2@127.0.0.1:{free_port()}/none")
    settings_env.setenv(PREFIX + "REDIS_URL", f"redis://u:hunter2@127.0.0.1:{free_port()}/0")
    get_engine.cache_clear()

    made = report("--json").stdout

    controls = {control["id"]: control for control in json.loads(made)["controls"]}
    assert controls["tenant-access"]["state"] == "not checked"
    assert controls["tenant-access"]["evidence"][0]["found"] == "PostgreSQL could not be asked (OperationalError)"
    assert {one["state"] for one in controls["transport"]["evidence"]} == {"not checked", "met"}
    assert "hunter2" not in made


def test_a_file_that_can_not_be_written_is_said(database: Engine, redis_url: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["compliance", "report", "--output", str(tmp_path)])

    assert str(result.exception) == f"Can't write {tmp_path}: Is a directory."


def test_every_framework_is_served_and_each_control_once_by_its_id() -> None:
    assert len({control.id for control in CONTROLS}) == len(CONTROLS)
    for framework in Framework:
        assert any(control.clauses(framework) for control in CONTROLS)


def test_the_page_about_security_has_the_table_of_clauses() -> None:
    assert clause_table() in PAGE.read_text(), "paste what `python -m pipeline.compliance` prints"
