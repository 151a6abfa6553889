from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from answered import answer_requests, usage
from seeds import seed_tenant, sql
from sqlalchemy import Engine
from typer.testing import CliRunner

from pipeline.billing.card_files import read_card_file
from pipeline.billing.invoices import create_invoices, finalize_invoice
from pipeline.billing.plans import add_draft, publish
from pipeline.billing.reconciliation import CHECKS, Drift, drift_of, reconcile
from pipeline.billing.reports import Month
from pipeline.billing.rerating import rate_by_card
from pipeline.cli import app
from pipeline.tables.session import transaction

CARD = """
plan: default
currency: USD
models:
  tiny:
    input: 1000000
    output: {graduated: [{up_to: 10, price: 2000000}, {price: 1000000}]}
  plain: {input: 1000000, output: 1000000}
"""
MONTH = Month.of(datetime.now(UTC))
FIRST = "request_id = (SELECT min(request_id) FROM metered_usage)"


@pytest.fixture
def books(database: Engine) -> Engine:
    for model in ("tiny", "plain", "unpriced"):
        sql(database, "INSERT INTO served_models (name, path, context_length) VALUES (:m, '/', 2048)", m=model)
    with transaction() as session:
        publish(session, add_draft(session, read_card_file(CARD)))
    for name in ("acme", "globex"):
        answer_requests(database, seed_tenant(database, name), [usage(5, 2, 8), usage(4, output=8)], num_at_once=1)
    return database


def named(drift: Drift) -> tuple[str, str, Decimal, str]:
    return drift.tenant, drift.check.name, drift.amount, drift.currency


def test_books_that_agree_have_no_drift_also_after_corrections(books: Engine) -> None:
    found = reconcile()
    assert (list(found.months), found.num_tenants, list(found.drifts)) == ([MONTH], 2, [])
    assert [found.total(check) for check in CHECKS] == [0] * len(CHECKS)
    with transaction() as session:
        rate_by_card(session, MONTH, read_card_file(CARD.replace("2000000", "3000000")), publishes=True)
    assert list(reconcile(months=[MONTH]).drifts) == []
    result = CliRunner().invoke(app, ["bill", "audit", "--month", str(MONTH)])
    assert result.exit_code == 0
    assert "The books of 1 months and 2 tenants agree." in result.stdout


@pytest.mark.parametrize(
    ("change", "check", "drift"),
    [
        (f"UPDATE results SET num_output_tokens = num_output_tokens + 3 WHERE {FIRST}", "engine_tokens", 6),
        (f"UPDATE results SET num_output_tokens = num_output_tokens + 3 WHERE {FIRST}", "rated_tokens", 3),
        ("UPDATE batches SET num_prompt_tokens = num_prompt_tokens - 1", "engine_tokens", 1),
        ("UPDATE attempts SET num_tokens = num_tokens + 2", "engine_tokens", 2),
        ("UPDATE attempts SET engine_ms = engine_ms + 5", "engine_ms", 5),
        (f"DELETE FROM rated_lines WHERE {FIRST}", "unrated_events", 3),
        (f"UPDATE rated_lines SET quantity = quantity + 1 WHERE meter = 'output' AND {FIRST}", "rated_tokens", 1),
        (f"UPDATE rated_lines SET amount = amount + 0.25 WHERE meter = 'output' AND {FIRST}", "rated_amount", "0.25"),
        (f"UPDATE rated_lines SET amount = amount + 0.25 WHERE meter = 'output' AND {FIRST}", "ledger", "0.25"),
        (f"UPDATE rated_lines SET quantity_before = 5 WHERE meter = 'output' AND {FIRST}", "rated_amount", 3),
        (
            "UPDATE ledger_entries e SET amount = CASE a.kind WHEN 'receivable' THEN amount + 2 ELSE amount - 2 END"
            " FROM ledger_accounts a WHERE a.id = e.account_id AND transaction_id = 1",
            "ledger",
            -2,
        ),
    ],
)
def test_what_was_tampered_with_is_named_with_its_difference(
    books: Engine, change: str, check: str, drift: int | str
) -> None:
    acme = "tenant_id = (SELECT id FROM tenants WHERE name = 'acme')"
    if change.startswith("UPDATE batches"):
        change += f" WHERE {acme}"
    if change.startswith("UPDATE attempts"):
        change += f" WHERE batch_id = (SELECT id FROM batches WHERE {acme})"
    sql(books, change)
    drifts = {one[1]: one for one in map(named, reconcile().drifts)}
    currency = "USD" if check in ("rated_amount", "ledger") else ""
    assert drifts[check] == ("acme", check, Decimal(drift), currency)


@pytest.mark.parametrize(
    ("change", "check", "drift"),
    [
        ("num_output_tokens = num_output_tokens + 3", "engine_tokens", 6),
        ("num_output_tokens = num_output_tokens + 3", "rated_amount", 3),
        ("rate_card_id = NULL, output_amount = NULL, uncached_amount = NULL", "unrated_events", 2),
        ("output_amount = output_amount + 0.25", "rated_amount", "0.25"),
        ("output_amount = output_amount + 0.25", "ledger", "0.25"),
        ("engine_ms = engine_ms + 5", "engine_ms", 5),
    ],
)
def test_so_is_what_was_tampered_with_in_the_row_of_an_answer(
    books: Engine, change: str, check: str, drift: int | str
) -> None:
    answer_requests(books, seed_tenant(books, "initech"), [usage(4, output=8)], model="plain")
    assert list(reconcile().drifts) == []
    sql(books, f"UPDATE results SET {change} WHERE request_id = (SELECT max(request_id) FROM results)")
    drifts = {one[1]: one for one in map(named, reconcile().drifts)}
    currency = "USD" if check in ("rated_amount", "ledger") else ""
    assert drifts[check] == ("initech", check, Decimal(drift), currency)


def test_an_audit_that_finds_drift_says_so_and_fails(books: Engine) -> None:
    globex = sql(books, "SELECT id FROM tenants WHERE name = 'globex'")[0][0]
    answer_requests(books, seed_tenant(books, "initech"), [usage(1, output=1)], model="unpriced")
    result = CliRunner().invoke(app, ["bill", "audit", "--json"])
    assert result.exit_code == 1
    printed = json.loads(result.stdout)
    assert [(one["tenant"], one["check"], one["drift"]) for one in printed["drifts"]] == [
        ("initech", "unrated_events", "2")
    ]
    with transaction() as session:
        assert drift_of(session, MONTH, globex) == []
    result = CliRunner().invoke(app, ["bill", "rate"])
    assert result.exit_code == 1
    assert "2 of model unpriced have no price" in result.stderr


def test_issued_invoices_bill_what_was_rated_by_then_and_corrections_are_no_drift(books: Engine) -> None:
    for change in (
        "UPDATE results SET created_at = created_at - interval '40 days'",
        "UPDATE ledger_transactions SET created_at = created_at - interval '40 days'",
    ):
        sql(books, change)
    now = datetime.now(UTC)
    before = Month.of(now - timedelta(days=40))
    tenant_id = sql(books, "SELECT id FROM tenants WHERE name = 'acme'")[0][0]
    with transaction() as session:
        [invoice] = create_invoices(session, tenant_id, before, now)
        finalize_invoice(session, invoice.id, now)
    assert list(reconcile(months=[before]).drifts) == []
    with transaction() as session:
        rate_by_card(session, before, read_card_file(CARD.replace("2000000", "3000000")), publishes=True)
    assert list(reconcile(months=[before]).drifts) == []
    with books.begin() as conn:
        conn.exec_driver_sql("SET LOCAL session_replication_role = replica")
        conn.exec_driver_sql("UPDATE invoice_items SET exact = exact + 1 WHERE number = 1")
    assert [named(drift) for drift in reconcile(months=[before]).drifts] == [("acme", "invoices", Decimal(1), "USD")]
