from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random

import pytest
from recorded_usage import make_batch, make_key, rate, use
from seeds import sql
from sqlalchemy import Engine, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from pipeline.billing.credits import grant_credit
from pipeline.billing.currencies import exact_text, round_to_minor
from pipeline.billing.documents import Document
from pipeline.billing.invoice_reading import document_of
from pipeline.billing.invoices import (
    InvoiceError,
    create_invoices,
    finalize_invoice,
    find_invoice,
    list_invoices,
    void_invoice,
)
from pipeline.billing.ledger import post_receivable
from pipeline.billing.missed_windows import credit_missed_window
from pipeline.billing.pricing import exact_sum
from pipeline.billing.rate_cards import add_rate_card
from pipeline.billing.reports import Month, UnratedUsageError
from pipeline.tables import (
    ApiKey,
    Batch,
    BatchStatus,
    Contract,
    Invoice,
    InvoiceStatus,
    LineKind,
    Meter,
    RateCard,
    RatedLine,
)
from pipeline.tables.session import transaction

OCTOBER, NOVEMBER = Month(2026, 10), Month(2026, 11)
MID_OCTOBER, MID_NOVEMBER = datetime(2026, 10, 15, 12, tzinfo=UTC), datetime(2026, 11, 15, 12, tzinfo=UTC)
#: When the invoices of these months can be issued.
AFTER_OCTOBER, AFTER_NOVEMBER = datetime(2026, 11, 1, 1, tzinfo=UTC), datetime(2026, 12, 1, 1, tzinfo=UTC)


def make_card(session: Session, model: str = "tiny", currency: str = "USD", price: str = "0.137") -> RateCard:
    return add_rate_card(
        session,
        model,
        currency=currency,
        input_price=Decimal(price),
        cached_input_price=Decimal("0.061"),
        output_price=Decimal("0.411"),
        batch_discount=Decimal("0.333"),
    )


def finalize(session: Session, invoice_id: str, now: datetime) -> Invoice:
    """Usage is made up here, without batches and ledger to compare it with: see test_invoice_commands."""
    return finalize_invoice(session, invoice_id, now, find_drift=lambda *_: [])


def issue(session: Session, key: ApiKey, month: Month, now: datetime) -> Sequence[Document]:
    """The invoices of a month, by currency, issued."""
    made = create_invoices(session, key.tenant_id, month, now)
    return [document_of(session, finalize(session, invoice.id, now)) for invoice in made]


def balance(database: Engine, account: str) -> Decimal:
    [(amount,)] = sql(
        database,
        "SELECT coalesce(sum(e.amount), 0) FROM ledger_entries e JOIN ledger_accounts a ON a.id = e.account_id"
        " WHERE a.kind = :account",
        account=account,
    )
    return Decimal(amount)


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


def test_later_changes_are_corrections_of_the_next_invoice(database: Engine) -> None:
    with transaction() as session:
        card, dearer = make_card(session), make_card(session, price="1.5")
        key = make_key(session, "acme")
        batch = make_batch(session, key)
        request = use(session, batch, "tiny", (1_000_000, 0, 1_000_000), at=MID_OCTOBER, card=card)
        [october] = issue(session, key, OCTOBER, AFTER_OCTOBER)
        ledger = session.scalars(select(RatedLine.ledger_transaction_id).limit(1)).one()
        rate(session, request, Meter.INPUT_UNCACHED, 1_000_000, dearer, ledger, revision=2)
        use(session, batch, "tiny", (0, 0, 1_000_000), at=MID_OCTOBER, card=card)  # it came in late
        use(session, batch, "tiny", (2_000_000, 0, 0), at=MID_NOVEMBER, card=dearer)

        [november] = issue(session, key, NOVEMBER, AFTER_NOVEMBER)
        assert document_of(session, find_invoice(session, october.id)) == october
        corrections = [line for line in november.lines if line.kind is LineKind.CORRECTION]
        december = issue(session, key, Month(2026, 12), datetime(2027, 1, 1, 1, tzinfo=UTC))

    assert {(line.month, line.meter, line.quantity, line.exact) for line in corrections} == {
        (OCTOBER, Meter.INPUT_UNCACHED, -1_000_000, Decimal("-0.137") * Decimal("0.667")),
        (OCTOBER, Meter.INPUT_UNCACHED, 1_000_000, Decimal("1.5") * Decimal("0.667")),
        (OCTOBER, Meter.OUTPUT, 1_000_000, Decimal("0.411") * Decimal("0.667")),
    }
    assert november.number == "INV-2026-000002"
    assert december == []  # what was corrected is not corrected again
    now = sql(
        database,
        "SELECT sum(amount) FROM (SELECT DISTINCT ON (request_id, meter) amount FROM rated_lines"
        " ORDER BY request_id, meter, revision DESC) latest",
    )
    assert october.exact + november.exact == now[0][0]


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


def test_currencies_have_invoices_of_their_own_in_their_own_minor_unit(database: Engine) -> None:
    with transaction() as session:
        key = make_key(session, "acme")
        batch = make_batch(session, key)
        for model, currency in (("a", "JPY"), ("b", "KWD"), ("c", "USD")):
            card = make_card(session, model, currency, "1")
            use(session, batch, model, (3_500_000, 0, 0), at=MID_OCTOBER, card=card)
        documents = issue(session, key, OCTOBER, AFTER_OCTOBER)
    assert [(document.currency, exact_text(document.total, document.currency)) for document in documents] == [
        ("JPY", "2"),
        ("KWD", "2.335"),  # 2.3345, half away from zero
        ("USD", "2.33"),
    ]


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
        barrier.wait(10)
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


def test_a_minimum_a_missed_window_and_prepaid_credit_are_lines_of_their_own(database: Engine) -> None:
    now = datetime.now(UTC)
    month, after = Month.of(now), Month.of(now).end + timedelta(days=1)
    with transaction() as session:
        card = make_card(session)
        key = make_key(session, "acme")
        session.add(
            Contract(
                id="contract_1",
                tenant_id=key.tenant_id,
                plan="default",
                commitment=Decimal("2"),
                currency="USD",
                effective_from=month.start - timedelta(days=1),
            )
        )
        grant_credit(session, key.tenant_id, amount=Decimal("0.30"), currency="USD", reason="welcome")
    with transaction() as session:
        batch = make_batch(session, key)
        use_now(session, batch, card, Decimal("1.01"))
        batch.status = BatchStatus.EXPIRED
        session.flush()
        [note] = credit_missed_window(session, batch.id)
        [document] = issue(session, key, month, after)

        exact = {line.kind: line.exact for line in document.lines if line.meter is not Meter.OUTPUT}
        assert exact == {
            LineKind.USAGE: Decimal("1.01"),
            LineKind.COMMITMENT: Decimal("0.99"),
            LineKind.CREDIT_NOTE: -note.amount,
            LineKind.CREDIT: Decimal("-0.30"),
            LineKind.ROUNDING: Decimal(0),
        }
        [noted] = [line for line in document.lines if line.kind is LineKind.CREDIT_NOTE]
        assert (noted.credit_note_id, batch.id in noted.description) == (note.id, True)
        # The next month has the minimum again, and nothing of what was passed on.
        following = Month.of(month.end)
        [next_one] = issue(session, key, following, following.end + timedelta(days=1))
        assert {line.kind: line.exact for line in next_one.lines if line.exact} == {LineKind.COMMITMENT: Decimal(2)}
        # What is taken back can be billed again, all of it.
        void_invoice(session, document.id, "test", after)
        [again] = issue(session, key, month, after)
        assert [(line.kind, line.exact) for line in again.lines] == [(line.kind, line.exact) for line in document.lines]
    owed = balance(database, "receivable") + balance(database, "billed")
    assert owed == 0  # nothing is left to be billed
    assert balance(database, "invoiced") == again.total + next_one.total


def use_now(session: Session, batch: Batch, card: RateCard, amount: Decimal) -> None:
    """An answer of now that costs `amount`, posted as recording does."""
    request = use(session, batch, "tiny", (1, 0, 0), at=datetime.now(UTC), card=None)
    key = f"usage {request}"
    cursor = session.connection().connection.cursor()
    post_receivable(cursor, tenant_id=batch.tenant_id, currency="USD", amount=amount, idempotency_key=key)
    cursor.execute("SELECT id FROM ledger_transactions WHERE idempotency_key = %s", [key])
    [(transaction_id,)] = cursor.fetchall()
    for meter, quantity, cost in ((Meter.INPUT_UNCACHED, 1, amount), (Meter.OUTPUT, 0, Decimal(0))):
        session.add(
            RatedLine(
                request_id=request,
                meter=meter,
                rate_card_id=card.id,
                ledger_transaction_id=transaction_id,
                quantity=quantity,
                unit_price=Decimal(0),
                amount=cost,
                currency="USD",
            )
        )
    session.flush()


def test_of_a_month_that_was_dropped_nothing_is_corrected_or_taken_back(database: Engine) -> None:
    with transaction() as session:
        card = make_card(session)
        key = make_key(session, "acme")
        request = use(session, make_batch(session, key), "tiny", (90_000_000, 0, 1), at=MID_OCTOBER, card=card)
        use(session, make_batch(session, key), "tiny", (90_000_000, 0, 1), at=MID_NOVEMBER, card=card)
        [october] = issue(session, key, OCTOBER, AFTER_OCTOBER)
    for table in ("rated_lines", "usage_events"):  # as retention drops them
        sql(database, f"DELETE FROM {table} WHERE request_id = :id", id=request)
    with transaction() as session:
        with pytest.raises(InvoiceError, match="was dropped with its month"):
            void_invoice(session, october.id, "test", AFTER_NOVEMBER)
        [november] = issue(session, key, NOVEMBER, AFTER_NOVEMBER)
        assert {line.kind for line in november.lines} == {LineKind.USAGE, LineKind.ROUNDING}


@pytest.mark.parametrize("seed", range(int(os.environ.get("INVOICE_HISTORIES", "2"))))
def test_whatever_happens_invoices_bill_what_is_rated_and_nothing_twice(database: Engine, seed: int) -> None:
    random = Random(seed)
    with transaction() as session:
        cards = {model: make_card(session, model, currency) for model, currency in (("a", "USD"), ("b", "JPY"))}
        key = make_key(session, "acme")
        batch = make_batch(session, key)
        requests: list[tuple[int, str]] = []
        months = [Month(2026, number) for number in (8, 9, 10)]
        for number, month in enumerate(months):
            for _ in range(random.randint(1, 6)):  # some of it comes in late
                model = random.choice(["a", "b"])
                at = random.choice(months[: number + 1]).start + timedelta(days=random.randint(0, 29))
                tokens = (random.randint(0, 10**9), random.randint(0, 10**6), random.randint(0, 10**9))
                requests.append((use(session, batch, model, tokens, at=at, card=cards[model]), model))
            for request, model in random.sample(requests, random.randint(0, len(requests) // 2)):
                ledger, revision = session.execute(
                    select(RatedLine.ledger_transaction_id, func.max(RatedLine.revision))
                    .where(RatedLine.request_id == request, RatedLine.meter == Meter.OUTPUT)
                    .group_by(RatedLine.ledger_transaction_id)
                ).one()
                quantity = random.randint(0, 10**9)
                rate(session, request, Meter.OUTPUT, quantity, cards[model], ledger, revision + 1)
            issue(session, key, month, month.end + timedelta(days=1))
            issued = [each for each in list_invoices(session) if each.status is InvoiceStatus.FINAL]
            if random.random() < 0.5:
                void_invoice(session, random.choice(issued).id, "test", month.end + timedelta(days=1))
        for month in months:  # what was taken back
            open_ones = create_invoices(session, key.tenant_id, month, AFTER_NOVEMBER)
            for invoice in open_ones:
                if invoice.number is None:
                    finalize(session, invoice.id, AFTER_NOVEMBER)
        issue(session, key, Month(2026, 12), datetime(2027, 2, 1, tzinfo=UTC))  # the last corrections
        documents = [
            document_of(session, each) for each in list_invoices(session) if each.status is InvoiceStatus.FINAL
        ]

    rated = dict(
        sql(
            database,
            "SELECT currency, sum(amount) FROM (SELECT DISTINCT ON (request_id, meter) currency, amount"
            " FROM rated_lines ORDER BY request_id, meter, revision DESC) latest GROUP BY currency",
        )
    )
    for currency, amount in rated.items():
        billed = [document for document in documents if document.currency == currency]
        assert exact_sum(document.exact for document in billed) == amount
        for document in billed:
            assert document.total == round_to_minor(document.exact, currency)
            assert exact_sum(line.amount for line in document.lines) == document.total
            assert exact_sum(item.exact for item in document.items) == document.exact
    numbers = sql(database, "SELECT count(*), max(right(number, 6)::int) FROM invoices WHERE number LIKE '%2026%'")
    assert numbers[0][0] == numbers[0][1]
