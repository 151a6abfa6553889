"""How an invoice is worded where people read it, on paper and on a page."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Final

from pipeline.billing.currencies import exact_text
from pipeline.billing.documents import Document, Line
from pipeline.tables.invoices import InvoiceStatus

TITLES: Final = {
    InvoiceStatus.DRAFT: "Draft of an invoice",
    InvoiceStatus.COLLECTING: "Draft of an invoice",
    InvoiceStatus.FINAL: "Invoice",
    InvoiceStatus.VOID: "Void invoice",
}
#: Not by the locale of whoever runs this.
_MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


def title_of(document: Document) -> str:
    return TITLES[document.status]


def facts_of(document: Document) -> Sequence[tuple[str, str]]:
    """What stands at the head of an invoice, by its name."""
    facts = [
        ("Number", document.number or "none yet"),
        ("Month of service", f"{_MONTHS[document.month.number - 1]} {document.month.year} (UTC)"),
        ("Issued", f"{document.issued_at:%Y-%m-%d}" if document.issued_at else "not yet"),
        ("Currency", document.currency),
        ("Account", document.tenant_id),
    ]
    if document.customer.tax_id:
        facts.append(("Tax number", document.customer.tax_id))
    if document.customer.reference:
        facts.append(("Reference", document.customer.reference))
    if document.voided_at:
        facts.append(("Void since", f"{document.voided_at:%Y-%m-%d}"))
        facts.append(("Because", document.void_reason or ""))
    return facts


def grouped(number: Decimal | int, currency: str | None = None) -> str:
    """With a comma before every three digits; an amount has its currency's decimals at least."""
    sign = "−" if number < 0 else ""
    if isinstance(number, int):
        return f"{sign}{abs(number):,}"
    whole, _, decimals = exact_text(number.copy_abs(), currency or "").partition(".")
    return f"{sign}{int(whole):,}" + (f".{decimals}" if decimals else "")


def cells_of(line: Line, currency: str) -> Sequence[str]:
    """Description, quantity, price of 1,000,000, amount."""
    return (
        line.description,
        "" if line.quantity is None else grouped(line.quantity),
        "" if line.net_price is None else grouped(line.net_price, currency),
        grouped(line.amount, currency),
    )


def notes_of(document: Document) -> Sequence[str]:
    """What stands at the end of an invoice."""
    notes = [
        "Prices are of 1,000,000 tokens, after the discount of batches and the factor of the service class. Each line "
        "is rounded once, half away from zero; the line of rounding makes the lines add up to the exact sum, which is "
        f"{exact_text(document.exact, document.currency)} {document.currency}, rounded once."
    ]
    if document.receipts_root is not None:
        notes.append(
            f"Merkle root of the {document.num_receipts:,} signed receipts of this month: {document.receipts_root}"
        )
    if document.supplier.reference:
        notes.append(document.supplier.reference)
    return notes
