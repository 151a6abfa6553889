"""`keys`, `rates`, `usage` and `bill`, against a real database."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from click.testing import Result
from recorded_usage import make_batch, make_key, use
from sqlalchemy import Engine
from typer.testing import CliRunner

from pipeline.billing.rate_cards import current_rate_card
from pipeline.cli import app
from pipeline.errors import UserError
from pipeline.tables.session import get_engine, transaction
from pipeline.tenancy.keys import authenticate

DURING = datetime(2026, 11, 15, tzinfo=UTC)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def printed(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def test_a_key_is_printed_once_and_works_until_it_is_revoked(database: Engine) -> None:
    made = run("keys", "create", "--tenant", "acme", "--name", "nightly")
    key = made.stdout.strip()
    assert made.exit_code == 0
    assert "can't be shown again" in made.stderr
    with transaction() as session:
        authenticate(session, key)

    [listed] = printed("keys", "list")
    assert (listed["tenant"], listed["name"], listed["revoked_at"]) == ("acme", "nightly", None)
    assert key.startswith(listed["starts_with"])
    for text in (run("keys", "list").stdout, json.dumps(listed)):
        assert key.rsplit("_", 1)[1] not in text
    assert printed("keys", "list", "--tenant", "acme") == [listed]

    assert printed("keys", "revoke", listed["id"])["revoked_at"]
    with transaction() as session, pytest.raises(Exception, match="revoked"):
        authenticate(session, key)
    assert "revoked" in run("keys", "revoke", key).stdout


def test_prices_are_set_from_now_on(database: Engine) -> None:
    first = run("rates", "set", "tiny", "--input", "0.10", "--output", "0.4", "--cached-input", "0.05")
    assert first.exit_code == 0, first.exception
    assert run("rates", "set", "tiny", "--input", "0.2", "--output", "0.4", "--discount", "0").exit_code == 0

    cards = printed("rates", "list", "tiny")

    assert [(card["input"], card["cached_input"], card["batch_discount"]) for card in cards] == [
        ("0.20", "0.20", "0"),
        ("0.10", "0.05", "0.5"),
    ]
    assert "0.10" in run("rates", "list").stdout


@pytest.fixture
def used(database: Engine) -> None:
    """A month in which two tenants used two models."""
    for model in ("tiny", "large"):
        assert (
            run("rates", "set", model, "--input", "0.10", "--output", "0.40", "--cached-input", "0.05").exit_code == 0
        )
    with transaction() as session:
        tiny, large = current_rate_card(session, "tiny"), current_rate_card(session, "large")
        acme = make_batch(session, make_key(session, "acme", "nightly"))
        globex = make_batch(session, make_key(session, "globex"))
        for _ in range(2):
            use(session, acme, "tiny", (1_000_000, 40, 3), at=DURING, card=tiny, engine_ms=5)
        use(session, acme, "large", (10, 0, 1), at=DURING, card=large)
        use(session, globex, "tiny", (10, 0, 1), at=DURING, card=tiny)


def test_usage_is_reported_in_all_forms(used: None) -> None:
    records = printed("usage", "--month", "2026-11")

    assert [(record["tenant"], record["model"], record["requests"]) for record in records] == [
        ("acme", "large", 1),
        ("acme", "tiny", 2),
        ("globex", "tiny", 1),
    ]
    assert records[1] | {"tenant_id": ""} == {
        "month": "2026-11",
        "tenant": "acme",
        "tenant_id": "",
        "model": "tiny",
        "requests": 2,
        "input_uncached_tokens": 2_000_000,
        "input_cached_tokens": 80,
        "output_tokens": 6,
        "engine_ms": 10,
    }
    rows = list(csv.DictReader(io.StringIO(run("usage", "--month", "2026-11", "--csv").stdout)))
    assert rows == [{key: str(value) for key, value in record.items()} for record in records]
    table = run("usage", "--month", "2026-11").stdout
    assert "2,000,000" in table
    by_key = printed("usage", "--month", "2026-11", "--tenant", "acme", "--by", "key")
    assert {record["api_key"] for record in by_key} == {"nightly"}


def test_a_bill_adds_up_in_all_forms(used: None) -> None:
    acme, globex = printed("bill", "--month", "2026-11")

    assert [line["amount"] for line in acme["lines"]] == ["0.0000007", "0.1000032"]
    assert (acme["exact"], acme["rounding"], acme["total"]) == ("0.1000039", "-0.0000039", "0.10")
    assert acme["lines"][1]["input_price"] == "0.10"
    assert (globex["exact"], globex["rounding"], globex["total"]) == ("0.0000007", "-0.0000007", "0.00")

    rows = list(csv.DictReader(io.StringIO(run("bill", "--month", "2026-11", "--csv").stdout)))
    assert [(row["tenant"], row["kind"], row["amount"]) for row in rows] == [
        ("acme", "line", "0.0000007"),
        ("acme", "line", "0.1000032"),
        ("acme", "rounding", "-0.0000039"),
        ("acme", "total", "0.10"),
        ("globex", "line", "0.0000007"),
        ("globex", "rounding", "-0.0000007"),
        ("globex", "total", "0.00"),
    ]
    table = run("bill", "--month", "2026-11").stdout
    for text in ("Bill of acme for 2026-11 (UTC), in USD", "rounding", "-0.0000039", "0.10", "2,000,000"):
        assert text in table


def test_a_month_without_use_is_empty(database: Engine) -> None:
    assert printed("bill", "--month", "2020-01") == []
    assert printed("usage", "--month", "2020-01") == []
    assert run("bill", "--month", "2020-01", "--csv").stdout == ""
    assert run("bill", "--month", "2020-01").stdout == "Nothing was used in 2020-01.\n"
    assert run("usage").exit_code == 0


def test_mistakes_are_told_in_one_line(database: Engine, set_before_start: Callable[[str, object], None]) -> None:
    def mistake(*arguments: str) -> str:
        result = run(*arguments)
        assert result.exit_code == 1
        assert isinstance(result.exception, UserError)
        return str(result.exception)

    assert "'2026-13' is no month" in mistake("bill", "--month", "2026-13")
    assert "There is no tenant 'nobody'" in mistake("usage", "--tenant", "nobody")
    assert "--input is 'free': give a decimal" in mistake("rates", "set", "m", "--input", "free", "--output", "1")
    assert "input_price is -1" in mistake("rates", "set", "m", "--input", "-1", "--output", "1")
    assert "There is no such key" in mistake("keys", "revoke", "nothing")
    assert run("bill", "--by", "colour").exit_code == 2
    set_before_start("DATABASE_URL", "postgresql+psycopg://nobody:secret@127.0.0.1:1/none")
    get_engine.cache_clear()
    message = mistake("usage")
    assert "Can't use PostgreSQL at 127.0.0.1:1/none" in message
    assert "secret" not in message
