from __future__ import annotations

import csv
import os
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from io import StringIO
from random import Random

import pytest
from issued_invoices import (
    AFTER_NOVEMBER,
    AFTER_OCTOBER,
    MID_NOVEMBER,
    MID_OCTOBER,
    NOVEMBER,
    OCTOBER,
    balance,
    finalize,
    issue,
    make_card,
    use_now,
)
from recorded_usage import make_batch, make_key, rate, use
from seeds import sql
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from pipeline.billing.credits import grant_credit
from pipeline.billing.currencies import exact_text, round_to_minor
from pipeline.billing.forms.focus import focus_form
from pipeline.billing.invoice_reading import document_of
from pipeline.billing.invoices import (
    InvoiceError,
    create_invoices,
    find_invoice,
    list_invoices,
    void_invoice,
)
from pipeline.billing.missed_windows import credit_missed_window
from pipeline.billing.pricing import exact_sum
from pipeline.billing.reports import Month
from pipeline.tables import (
    BatchStatus,
    Contract,
    InvoiceStatus,
    LineKind,
    Meter,
    RatedLine,
)
from pipeline.tables.session import transaction


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
        "SELECT sum(amount) FROM (SELECT DISTINCT ON (request_id, meter) amount FROM usage_prices"
        " ORDER BY request_id, meter, revision DESC) latest",
    )
    assert october.exact + november.exact == now[0][0]


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


def commit(session: Session, tenant_id: str, commitment: str) -> None:
    """To a minimum from October on."""
    begin = OCTOBER.start - timedelta(days=1)
    session.add(
        Contract(
            id="contract_1",
            tenant_id=tenant_id,
            plan="default",
            commitment=Decimal(commitment),
            currency="USD",
            effective_from=begin,
        )
    )
    session.flush()


@pytest.mark.parametrize(("late", "is_voided"), [(3, False), (3, True), (30, False), (30, True)])
def test_a_month_costs_its_minimum_or_its_usage_whatever_comes_in_late(
    database: Engine, late: int, is_voided: bool
) -> None:
    """Late usage of so many million tokens, where the minimum is reached at 25 million."""
    with transaction() as session:
        card = make_card(session, price="1")
        price = card.input_price * (1 - card.batch_discount)  # of a million tokens
        key = make_key(session, "acme")
        commit(session, key.tenant_id, f"{25 * price:f}")
        batch = make_batch(session, key)
        use(session, batch, "tiny", (20_000_000, 0, 0), at=MID_OCTOBER, card=card)
        [october] = issue(session, key, OCTOBER, AFTER_OCTOBER)
        assert october.exact == 25 * price

        use(session, batch, "tiny", (late * 1_000_000, 0, 0), at=MID_OCTOBER, card=card)
        use(session, batch, "tiny", (26_000_000, 0, 0), at=MID_NOVEMBER, card=card)
        [november] = issue(session, key, NOVEMBER, AFTER_NOVEMBER)
        if is_voided:
            void_invoice(session, october.id, "test", AFTER_NOVEMBER)
            [october] = issue(session, key, OCTOBER, AFTER_NOVEMBER)
        december = Month(2026, 12)
        [last] = issue(session, key, december, december.end + timedelta(days=1))

    assert october.exact + november.exact == (max(25, 20 + late) + 26) * price
    assert {line.month for line in last.lines} == {december}
    [minimum] = [line for line in november.lines if line.kind is LineKind.COMMITMENT]
    assert minimum.description.startswith("Correction of 2026-10: Minimum of ")
    rows = list(csv.DictReader(StringIO(b"".join(focus_form(november)).decode("utf-8-sig"))))
    assert [row["ChargeClass"] for row in rows if row["ChargeCategory"] == "Purchase"] == ["Correction"]


def test_usage_that_is_taken_back_is_owed_up_to_the_minimum(database: Engine) -> None:
    with transaction() as session:
        card, cheaper = make_card(session, price="2"), make_card(session, price="1")
        key = make_key(session, "acme")
        commit(session, key.tenant_id, "16.675")  # 25 million by the cheaper card
        request = use(session, make_batch(session, key), "tiny", (20_000_000, 0, 0), at=MID_OCTOBER, card=card)
        [october] = issue(session, key, OCTOBER, AFTER_OCTOBER)
        assert october.exact == Decimal("26.68")
        ledger = session.scalars(select(RatedLine.ledger_transaction_id).limit(1)).one()
        rate(session, request, Meter.INPUT_UNCACHED, 20_000_000, cheaper, ledger, revision=2)
        use(session, make_batch(session, key), "tiny", (30_000_000, 0, 0), at=MID_NOVEMBER, card=cheaper)
        [november] = issue(session, key, NOVEMBER, AFTER_NOVEMBER)
    assert october.exact + november.exact == Decimal("16.675") + 30 * Decimal("0.667")


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
            " FROM usage_prices ORDER BY request_id, meter, revision DESC) latest GROUP BY currency",
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
