from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal

import pytest
from issued_invoices import AFTER_NOVEMBER, AFTER_OCTOBER, MID_OCTOBER, OCTOBER, balance, finalize, issue, make_card
from recorded_usage import make_batch, make_key, use
from seeds import sql
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from pipeline.billing.invoice_reading import document_of
from pipeline.billing.invoices import (
    InvoiceError,
    create_invoices,
    finalize_invoice,
    find_invoice,
    list_invoices,
    void_invoice,
)
from pipeline.billing.reports import UnratedUsageError
from pipeline.tables import (
    Invoice,
    InvoiceStatus,
    Meter,
)
from pipeline.tables.session import transaction


def test_an_invoice_goes_from_draft_to_final_and_adds_up(database: Engine) -> None:
    with transaction() as session:
        card = make_card(session)
        key = make_key(session, "acme", "nightly")
        for number in range(3):
            use(session, make_batch(session, key), "tiny", (70_000 + number, 33, 9_001), at=MID_OCTOBER, card=card)
        use(session, make_batch(session, key), "tiny", (1, 0, 1), at=OCTOBER.end, card=card)

        [draft] = create_invoices(session, key.tenant_id, OCTOBER, MID_OCTOBER)
        assert (draft.status, draft.number) == (InvoiceStatus.DRAFT, None)
        with pytest.raises(InvoiceError, match="can't be issued before 2026-11-01 01:00 UTC"):
            finalize_invoice(session, draft.id, AFTER_OCTOBER - timedelta(seconds=1))
        [again] = create_invoices(session, key.tenant_id, OCTOBER, OCTOBER.end)
        assert (again.id, again.status) == (draft.id, InvoiceStatus.COLLECTING)
        expected = document_of(session, again)

        issued = finalize(session, draft.id, AFTER_OCTOBER)
        document = document_of(session, issued)

    assert (document.status, document.number) == (InvoiceStatus.FINAL, "INV-2026-000001")
    assert document.lines == expected.lines
    assert document.items == expected.items
    assert [line.meter for line in document.lines] == [*Meter, None]
    assert document.lines[0].quantity == 210_003
    assert document.lines[0].exact == 210_003 * Decimal("0.137") * Decimal("0.667") / 1_000_000
    assert [line.amount for line in document.lines] == [Decimal("0.02"), Decimal("0.00"), Decimal("0.01"), Decimal(0)]
    assert (document.total, issued.total) == (Decimal("0.03"), Decimal("0.03"))
    assert sum(item.exact for item in document.items) == document.exact == issued.exact
    assert document.name_of(document.items[0].api_key_id) == "nightly"
    # What is owed line by line is one claim now.
    assert balance(database, "invoiced") == document.total
    assert balance(database, "billed") == -document.exact
    assert balance(database, "rounding") == document.exact - document.total


def test_what_is_issued_can_not_be_changed(database: Engine) -> None:
    with transaction() as session:
        card = make_card(session)
        key = make_key(session, "acme")
        use(session, make_batch(session, key), "tiny", (70_000, 3, 9_001), at=MID_OCTOBER, card=card)
        [document] = issue(session, key, OCTOBER, AFTER_OCTOBER)

    for change in (
        "UPDATE invoices SET total = total + 1",
        "UPDATE invoices SET status = 'draft'",
        "UPDATE invoices SET status = 'void', total = 0",
        "DELETE FROM invoices",
        "TRUNCATE invoices CASCADE",
        "UPDATE invoice_lines SET amount = amount + 1",
        "DELETE FROM invoice_items",
        "INSERT INTO invoice_lines (invoice_id, position, kind, description, service_month, exact, amount)"
        " SELECT invoice_id, 99, kind, '', service_month, 1, 1 FROM invoice_lines LIMIT 1",
        "TRUNCATE invoice_items",
    ):
        with pytest.raises(DBAPIError, match=r"is closed|can not be emptied"):
            sql(database, change)
    with transaction() as session:
        assert document_of(session, find_invoice(session, document.id)) == document


def test_a_void_invoice_keeps_its_number_and_its_month_is_billed_again(database: Engine) -> None:
    with transaction() as session:
        card = make_card(session)
        key = make_key(session, "acme")
        use(session, make_batch(session, key), "tiny", (90_000_000, 0, 1), at=MID_OCTOBER, card=card)
        [first] = issue(session, key, OCTOBER, AFTER_OCTOBER)
        void_invoice(session, first.number or "", "wrong address", AFTER_NOVEMBER)
        [second] = issue(session, key, OCTOBER, AFTER_NOVEMBER)

        assert [invoice.number for invoice in list_invoices(session)] == ["INV-2026-000001", "INV-2026-000002"]
        assert document_of(session, find_invoice(session, first.id)).lines == first.lines == second.lines
        with pytest.raises(InvoiceError, match="is void already"):
            void_invoice(session, first.id, "again", AFTER_NOVEMBER)
        with pytest.raises(InvoiceError, match="is final already"):
            finalize(session, second.id, AFTER_NOVEMBER)
        with pytest.raises(InvoiceError, match="Say why"):
            void_invoice(session, second.id, " ", AFTER_NOVEMBER)
    assert balance(database, "invoiced") == second.total


def test_nothing_is_rated_again_while_an_invoice_is_issued(database: Engine) -> None:
    with transaction() as session:
        key = make_key(session, "acme")
        use(session, make_batch(session, key), "tiny", (10, 0, 1), at=MID_OCTOBER, card=make_card(session))
        [draft] = create_invoices(session, key.tenant_id, OCTOBER, AFTER_OCTOBER)
    lock = "SELECT pg_try_advisory_xact_lock(hashtextextended('rating again', 0))"
    with transaction() as session:
        finalize(session, draft.id, AFTER_OCTOBER)
        assert sql(database, lock) == [(False,)]
    assert sql(database, lock) == [(True,)]


def test_usage_without_a_price_keeps_an_invoice_from_being_issued(database: Engine) -> None:
    with transaction() as session:
        key = make_key(session, "acme")
        batch = make_batch(session, key)
        use(session, batch, "tiny", (10, 0, 1), at=MID_OCTOBER, card=make_card(session))
        use(session, batch, "tiny", (10, 0, 1), at=MID_OCTOBER, card=None)
        [draft] = create_invoices(session, key.tenant_id, OCTOBER, AFTER_OCTOBER)
        with pytest.raises(UnratedUsageError):
            finalize(session, draft.id, AFTER_OCTOBER)


def test_many_that_issue_at_once_leave_no_gap_and_issue_each_once(database: Engine) -> None:
    with transaction() as session:
        card = make_card(session)
        invoices: list[Invoice] = []
        for number in range(4):
            key = make_key(session, f"tenant {number}")
            use(session, make_batch(session, key), "tiny", (90_000_000, 0, 1), at=MID_OCTOBER, card=card)
            invoices += create_invoices(session, key.tenant_id, OCTOBER, AFTER_OCTOBER)
    barrier = threading.Barrier(8)

    def run(invoice_id: str) -> str:
        barrier.wait(60)
        with transaction() as session:
            return finalize(session, invoice_id, AFTER_OCTOBER).number or ""

    with ThreadPoolExecutor(8) as pool:
        attempts = [pool.submit(run, invoice.id) for invoice in invoices for _ in range(2)]
        errors = [attempt.exception(60) for attempt in attempts]
    numbers = sorted(attempt.result() for attempt, error in zip(attempts, errors, strict=True) if error is None)

    assert numbers == [f"INV-2026-{number:06}" for number in range(1, 5)]
    assert all("is final already" in str(error) for error in errors if error is not None)
    assert sum(error is not None for error in errors) == 4
    [(num_closings,)] = sql(database, "SELECT count(*) FROM ledger_transactions WHERE kind = 'invoice'")
    assert num_closings == 4
