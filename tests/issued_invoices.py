"""Invoices of usage that is made up, and what they come to."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal

from recorded_usage import use
from seeds import sql
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from pipeline.billing.documents import Document
from pipeline.billing.invoice_reading import document_of
from pipeline.billing.invoices import (
    create_invoices,
    finalize_invoice,
)
from pipeline.billing.ledger import post_receivable
from pipeline.billing.rate_cards import add_rate_card
from pipeline.billing.reports import Month
from pipeline.tables import (
    ApiKey,
    Batch,
    Invoice,
    Meter,
    RateCard,
    RatedLine,
)

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
