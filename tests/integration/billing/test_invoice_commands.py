"""`ryzanstein bill invoice …`, `bill report` and `bill customer`, over usage that was recorded as groups record it."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from click.testing import Result
from seeds import sql
from sqlalchemy import Engine
from submitting import Bench
from typer.testing import CliRunner

from pipeline.billing.drafting import draft_invoices
from pipeline.billing.reports import Month
from pipeline.billing.rollups import rebuild
from pipeline.cli import app
from pipeline.errors import UserError
from pipeline.jobs.audit import audit
from pipeline.jobs.finalizing import finalize

THIS_MONTH = Month.of(datetime.now(UTC))
LAST_MONTH = Month.of(THIS_MONTH.start - timedelta(days=1))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def printed(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


@pytest.fixture
def used(database: Engine, tmp_path: Path) -> Bench:
    """A tenant that used something in the last month."""
    bench = Bench.make(database, tmp_path / "model")
    batch_id = bench.run(5)
    bench.answer(bench.claim())
    finalize(batch_id, database)
    back = f"interval '{(datetime.now(UTC) - LAST_MONTH.start).days - 1} days'"
    sql(database, f"UPDATE ledger_transactions SET created_at = created_at - {back}")
    sql(database, f"UPDATE results SET created_at = created_at - {back}")
    rebuild(database)
    return bench


def test_a_month_is_drafted_issued_reported_and_taken_back(used: Bench, tmp_path: Path) -> None:
    month = str(LAST_MONTH)
    assert run("bill", "invoice", "list").stdout == "There are no invoices.\n"
    run("bill", "customer", "--tenant", "acme", "--name", "Acme GmbH", "--address", r"Weg 1\nBerlin", "--tax-id", "DE1")
    preview = printed("bill", "report", "--month", month, "--format", "json", "--out", str(tmp_path / "preview"))
    assert printed("bill", "invoice", "list") == []  # a report makes no invoice

    [draft] = printed("bill", "invoice", "create", "--month", month)
    assert (draft["status"], draft["number"], draft["total"]) == ("collecting", None, None)
    [issued] = printed("bill", "invoice", "finalize", "--month", month)
    assert (issued["status"], issued["id"]) == ("final", draft["id"])
    assert issued["number"].startswith(f"INV-{datetime.now(UTC).year}-000001")
    assert preview[0]["total"] == issued["total"]
    assert printed("bill", "invoice", "list", "--tenant", "acme", "--month", month) == [issued]

    shown = printed("bill", "invoice", "show", issued["number"])
    assert shown["customer"] == {"name": "Acme GmbH", "address": "Weg 1\nBerlin", "tax_id": "DE1", "reference": ""}
    assert "Acme GmbH" in run("bill", "invoice", "show", issued["number"]).stdout
    rated = sql(used.engine, "SELECT sum(amount) FROM usage_prices")[0][0]
    assert Decimal(shown["exact"]) == rated

    forms = "pdf,html,xlsx,csv,json,focus,journal"
    [report] = printed("bill", "report", "--month", month, "--format", forms, "--out", str(tmp_path / "out"))
    files = {path.split("000001.")[1]: Path(path).read_bytes() for path in report["files"]}
    total = Decimal(issued["total"])
    assert set(files) == {"pdf", "html", "xlsx", "csv", "json", "focus.csv", "journal.csv"}
    assert files["pdf"].startswith(b"%PDF-")
    assert sum(Decimal(row["amount"]) for row in table(files["csv"])) == total
    assert sum(Decimal(row["BilledCost"]) for row in table(files["focus.csv"])) == total
    assert Decimal(json.loads(files["json"])["total"]) == total
    sheet = openpyxl.load_workbook(io.BytesIO(files["xlsx"]))["Invoice"]
    assert sum(Decimal(str(cell.value)) for cell in sheet["N"][1:-1]) == total
    journal = table(files["journal.csv"])
    debits = {name: sum(Decimal(row[name] or 0) for row in journal) for name in ("debit", "credit")}
    assert debits["debit"] == debits["credit"]
    assert sum(Decimal(row["debit"] or 0) for row in journal if row["account"] == "receivable") == rated
    assert audit(used.engine, at_rest=False).violations == []

    with pytest.raises(UserError, match="is final already"):
        raise run("bill", "invoice", "finalize", issued["id"]).exception  # type: ignore[misc]
    assert printed("bill", "invoice", "void", issued["number"], "--reason", "wrong name")[0]["status"] == "void"
    assert audit(used.engine, at_rest=False).violations == []
    [again] = printed("bill", "invoice", "create", "--month", month)
    assert again["id"] != issued["id"]
    [second] = printed("bill", "invoice", "finalize", again["id"])
    assert (second["number"][-6:], second["total"]) == ("000002", issued["total"])
    assert audit(used.engine, at_rest=False).violations == []


def table(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def test_what_can_not_be_done_is_said(used: Bench) -> None:
    with pytest.raises(UserError, match="has not begun"):
        raise run("bill", "invoice", "create", "--month", "2100-01").exception  # type: ignore[misc]
    with pytest.raises(UserError, match="no invoice 'INV-1'"):
        raise run("bill", "invoice", "show", "INV-1").exception  # type: ignore[misc]
    assert run("bill", "report", "--month", "2026-10", "--format", "docx").exit_code == 2
    assert run("bill", "invoice", "finalize").exit_code == 2
    assert run("bill", "invoice", "create", "--month", "2020-01").stdout == "There is nothing to bill in 2020-01.\n"


def test_books_that_do_not_agree_keep_an_invoice_from_being_issued(used: Bench) -> None:
    [draft] = printed("bill", "invoice", "create", "--month", str(LAST_MONTH))
    sql(used.engine, "UPDATE results SET output_amount = output_amount + 1")
    with pytest.raises(UserError, match=r"the ledger has the sum of the prices \(off by 5 USD\)"):
        raise run("bill", "invoice", "finalize", draft["id"]).exception  # type: ignore[misc]
    assert printed("bill", "invoice", "list")[0]["number"] is None


def test_drafts_of_a_month_that_is_over_are_made_by_themselves(used: Bench) -> None:
    early = THIS_MONTH.start + timedelta(minutes=5)
    assert draft_invoices(used.engine, THIS_MONTH.start + timedelta(days=20)) == 0
    assert draft_invoices(used.engine, early) == 1
    assert draft_invoices(used.engine, early) == 0
    [draft] = printed("bill", "invoice", "list")
    assert (draft["month"], draft["status"]) == (str(LAST_MONTH), "collecting")
