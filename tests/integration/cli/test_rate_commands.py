"""`ryzanstein rates …`, `contracts …` and `credits …` against a real database."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from seeds import seed_tenant
from sqlalchemy import Engine
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import UserError

CARD = """
plan: gold
currency: JPY
batch_discount: 0.5
models:
  tiny: {input: 100, output: {graduated: [{up_to: 1000000, price: 400}, {price: 300}], minimum: 10}}
"""


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def printed(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json"))


def test_a_card_is_applied_published_and_shown(database: Engine, tmp_path: Path) -> None:
    file = tmp_path / "card.yaml"
    file.write_text(CARD)
    assert "ryzanstein rates publish gold --version 1" in run("rates", "apply", str(file))
    assert printed("rates", "show", "gold")["published_at"] == "draft"
    assert run("rates", "publish", "gold").startswith("Version 1 of plan gold holds from ")
    shown = printed("rates", "show", "gold")
    assert (shown["plan"], shown["version"], shown["currency"], len(shown["sha256"])) == ("gold", 1, "JPY", 64)
    assert shown["rates"][2] == {
        "model": "tiny",
        "meter": "output",
        "pricing": "graduated",
        "price": "400 up to 1000000, 300 beyond",
        "minimum": "10",
    }
    assert [(card["plan"], card["version"]) for card in printed("rates", "show")] == [("gold", 1)]
    table = run("rates", "show", "gold")
    for text in ("gold", "graduated", "400 up to 1000000"):
        assert text in table
    file.write_text(CARD.replace("input: 100", "input: free"))
    with pytest.raises(UserError, match=r"models\.tiny\.input\.price: .*; found 'free'"):
        run("rates", "apply", str(file))
    with pytest.raises(UserError, match="There is no plan 'silver'"):
        run("rates", "publish", "silver")


def test_a_tenant_is_given_a_contract_and_credit(database: Engine, tmp_path: Path) -> None:
    seed_tenant(database, "acme")
    run("rates", "set", "tiny", "--input", "1", "--output", "2")
    overrides = tmp_path / "overrides.yaml"
    overrides.write_text("models: {tiny: {output: 1.5}}")
    made = printed("contracts", "make", "acme", "--overrides", str(overrides), "--commitment", "100")
    [contract] = printed("contracts", "list", "--tenant", "acme")
    assert (contract["id"], contract["tenant"], contract["plan"]) == (made["id"], "acme", "default")
    assert (contract["commitment"], contract["currency"]) == ("100.00", "USD")
    assert printed("rates", "show", contract["overrides"])["rates"][2]["price"] == "1.5"

    granted = printed("credits", "grant", "acme", "25.5", "--reason", "prepaid", "--expires", "2099-01-01")
    assert granted["balance"] == "25.5"
    [grant] = printed("credits", "list")
    assert (grant["amount"], grant["left"], grant["expires_at"]) == ("25.50", "25.50", "2099-01-01T00:00:00+00:00")
    for command in ("contracts", "credits"):
        assert "acme" in run(command, "list")
    with pytest.raises(UserError, match="--expires is 'soon'"):
        run("credits", "grant", "acme", "1", "--reason", "x", "--expires", "soon")
