"""`explain`, `shares` and the class of `submit`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from running_gateways import Tenant
from seeds import sql
from sqlalchemy import Engine
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import UserError

Run = Callable[..., Result]


@pytest.fixture
def run(acme: Tenant, set_before_start: Callable[[str, object], None]) -> Run:
    set_before_start("BASE_URL", str(acme.client.base_url))
    set_before_start("API_KEY", acme.key)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def printed(result: Result) -> Any:
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def test_a_batch_is_submitted_in_a_class_and_explained(run: Run, acme: Tenant, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text('{"custom_id": "a", "url": "/v1/completions"}\n')
    batch = printed(run("submit", str(path), "--class", "flex", "--json"))
    assert batch["service_class"] == "flex"

    explained = run("explain", batch["id"])
    assert explained.exit_code == 0, explained.exception
    assert f"{batch['id']} validating (flex), model not known yet" in explained.stdout
    assert "Its input file is being read and planned. (preparing)" in explained.stdout
    assert printed(run("explain", batch["id"], "--json"))["reasons"][0]["code"] == "preparing"
    missing = run("explain", "batch_none")
    assert isinstance(missing.exception, UserError)
    assert "No batch found with id 'batch_none'." in str(missing.exception)


def test_shares_are_set_and_listed(run: Run, acme: Tenant, database: Engine) -> None:
    assert "weight 2.5 from now on" in run("shares", "set", "acme", "2.50").stdout
    sql(database, "INSERT INTO fair_shares VALUES ('tiny', 'flex', :id, 17.2)", id=acme.id)
    assert printed(run("shares", "list", "--json")) == [
        {"tenant": "acme", "weight": "2.5", "model": "tiny", "service_class": "flex", "served": 17}
    ]
    assert "acme" in run("shares", "list").stdout
    for wrong, message in (("much", "give a decimal number"), ("0", "is no weight")):
        assert message in str(run("shares", "set", "acme", wrong).exception)
