"""`ryzanstein rates …`, `contracts …` and `credits …` against a real database."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from answered import answer_requests, usage
from seeds import seed_batch, seed_tenant, sql
from sqlalchemy import Engine
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import UserError
from pipeline.jobs.claiming import claim_slice, return_slice
from pipeline.jobs.waste import WastePart
from pipeline.tables import WasteCause

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


def test_a_month_is_rated_again_from_the_command_line(database: Engine, tmp_path: Path) -> None:
    sql(database, "INSERT INTO served_models (name, path, context_length) VALUES ('tiny', '/', 2048)")
    run("rates", "set", "tiny", "--input", "1000000", "--output", "2000000", "--discount", "0")
    answer_requests(database, seed_tenant(database, "acme"), [usage(3, output=2)])
    month = f"{datetime.now(UTC):%Y-%m}"
    assert "SHA-256 of the lines" in run("bill", "rerate", "--month", month)
    draft = tmp_path / "draft.yaml"
    draft.write_text("plan: default\ncurrency: USD\nmodels: {tiny: {input: 1000000, output: 1000000}}")
    shown = printed("bill", "rerate", "--month", month, "--card", str(draft))
    [difference] = shown["differences"]
    assert (difference["tenant"], difference["before"], difference["after"]) == ("acme", "7.00", "5.00")
    assert (difference["difference"], shown["published"]) == ("-2.00", None)
    assert "Nothing was written" in run("bill", "rerate", "--month", month, "--card", str(draft))
    assert "Published as version 2" in run("bill", "rerate", "--month", month, "--card", str(draft), "--publish")
    assert printed("bill", "--month", month)[0]["total"] == "5.00"
    assert printed("bill", "audit")["drifts"] == []
    assert "0 usage events were rated" in run("bill", "rate")


def test_waste_is_listed_by_its_cause(database: Engine) -> None:
    month = f"{datetime.now(UTC):%Y-%m}"
    assert run("usage", "waste", "--month", month) == f"Nothing was wasted in {month}.\n"
    tenant = seed_tenant(database, "acme")
    seed_batch(database, tenant, [1])
    with database.begin() as conn:
        claimed = claim_slice(conn, model="tiny", group_id="group-0@test", lease_seconds=60)
        assert claimed is not None
        assert return_slice(conn, claimed, [WastePart(WasteCause.DRAIN, 1700, 50), WastePart(WasteCause.CRASH, 2)])
    assert printed("usage", "waste", "--month", month, "--tenant", "acme") == [
        {"tenant": "acme", "model": "tiny", "cause": "crash", "tokens": 2, "engine_ms": 0},
        {"tenant": "acme", "model": "tiny", "cause": "drain", "tokens": 1700, "engine_ms": 50},
    ]
    assert "1,700" in run("usage", "waste", "--month", month)
