from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from recorded_usage import make_batch, use
from running_gateways import Tenant, error_of
from sqlalchemy import select

from pipeline.billing.forms import FORMS
from pipeline.billing.invoices import create_invoices, finalize_invoice
from pipeline.billing.rate_cards import add_rate_card
from pipeline.billing.reports import Month
from pipeline.settings import get_settings
from pipeline.tables import ApiKey
from pipeline.tables.session import transaction

INVOICES = "/v1/organization/invoices"
OCTOBER = Month(2026, 10)


def bill(tenant: Tenant, *, is_issued: bool = True) -> str:
    """An invoice of some usage; returns its id."""
    after = datetime(2026, 11, 1, 2, tzinfo=UTC)
    with transaction() as session:
        card = add_rate_card(
            session,
            "tiny",
            currency="EUR",
            input_price=Decimal("0.37"),
            cached_input_price=Decimal("0.1"),
            output_price=Decimal("1.11"),
            batch_discount=Decimal("0.333"),
        )
        key = session.scalars(select(ApiKey).where(ApiKey.tenant_id == tenant.id)).one()
        batch = make_batch(session, key)
        for day in (1, 2, 30):
            at = datetime(2026, 10, day, 23, 59, tzinfo=UTC)
            use(session, batch, "tiny", (1_234_567 * day, 77, 7_654_321), at=at, card=card)
        [invoice] = create_invoices(session, tenant.id, OCTOBER, after)
        if is_issued:
            finalize_invoice(session, invoice.id, after, find_drift=lambda *_: [])
    return invoice.id


def test_a_tenant_reads_its_invoices_in_every_form(acme: Tenant, globex: Tenant) -> None:
    invoice_id = bill(acme)

    listed = acme.http.get(INVOICES).json()
    [summary] = listed["data"]
    assert (summary["id"], summary["status"], summary["number"]) == (invoice_id, "final", "INV-2026-000001")
    assert (summary["month"], summary["currency"]) == ("2026-10", "EUR")
    whole = acme.http.get(f"{INVOICES}/{invoice_id}").json()
    assert whole["total"] == summary["total"]
    assert sum(Decimal(line["amount"]) for line in whole["lines"]) == Decimal(whole["total"]) > 0
    assert acme.http.get(f"{INVOICES}/INV-2026-000001").json() == whole
    assert globex.http.get(INVOICES).json()["data"] == []
    missing = globex.http.get(f"{INVOICES}/{invoice_id}/pdf")
    assert missing.status_code == 404
    assert error_of(missing)["code"] == "invoice_not_found"

    for name, form in FORMS.items():
        answer = acme.http.get(f"{INVOICES}/{invoice_id}/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == form.media_type
        assert answer.headers["content-disposition"] == f'attachment; filename="INV-2026-000001.{form.extension}"'
        assert int(answer.headers["content-length"]) == len(answer.content) > 100
        if name in ("csv", "focus", "journal"):
            rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
            amounts = {
                "csv": lambda row: row["amount"],
                "focus": lambda row: row["BilledCost"],
                "journal": lambda row: (row["debit"] or f"-{row['credit']}") if row["account"] == "invoiced" else "0",
            }
            assert sum(Decimal(amounts[name](row)) for row in rows) == Decimal(whole["total"]), name
    assert acme.http.get(f"{INVOICES}/{invoice_id}/html").text.startswith("<!doctype html>")
    assert acme.http.get(f"{INVOICES}/{invoice_id}/docx").status_code == 400


def test_a_draft_shows_what_it_would_be(acme: Tenant) -> None:
    invoice_id = bill(acme, is_issued=False)
    assert acme.http.get(INVOICES).json()["data"][0]["total"] is None
    whole = acme.http.get(f"{INVOICES}/{invoice_id}").json()
    assert (whole["status"], whole["number"], whole["receipts"]) == ("collecting", None, None)
    assert Decimal(whole["total"]) > 0
    journal = acme.http.get(f"{INVOICES}/{invoice_id}/journal").text
    rows = [row for row in csv.DictReader(io.StringIO(journal, newline="")) if row["transaction"] == "pending"]
    assert sum(Decimal(row["debit"] or f"-{row['credit']}") for row in rows) == 0
    assert [Decimal(row["debit"]) for row in rows if row["account"] == "invoiced"] == [Decimal(whole["total"])]


def test_receipts_are_checked_by_a_key_that_anybody_with_a_key_may_read(
    acme: Tenant, settings_env: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings_env.setenv("RYZANSTEIN_SIGNING_KEY_FILE", str(tmp_path / "key.pem"))
    get_settings.cache_clear()
    answer = acme.http.get("/v1/receipts/key").json()
    assert answer["algorithm"] == "Ed25519"
    assert answer["public_key"].startswith("-----BEGIN PUBLIC KEY-----")


def test_where_nothing_is_signed_there_is_no_key(acme: Tenant) -> None:
    answer = acme.http.get("/v1/receipts/key")
    assert answer.status_code == 404
    assert error_of(answer)["code"] == "receipts_off"


def test_receipts_that_can_not_be_signed_are_refused(acme: Tenant) -> None:
    file_id = acme.client.files.create(file=("in.jsonl", b"{}\n"), purpose="batch").id
    body = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h", "receipts": True}
    answer = acme.http.post("/v1/batches", json=body)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "receipts"
    assert acme.http.post("/v1/batches", json=body | {"receipts": False}).status_code == 200
