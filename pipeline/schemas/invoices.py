"""Invoices, as the API shows them."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel

from pipeline.billing.currencies import exact_text
from pipeline.billing.reports import Month
from pipeline.tables import Invoice, InvoiceStatus


class InvoiceReceipts(BaseModel):
    """The receipts that were given for the month."""

    count: int
    #: Hex; null where there are none.
    merkle_root: str | None


class InvoiceSummary(BaseModel):
    """An invoice without its lines. Moments are Unix seconds, amounts are decimal strings."""

    id: str
    object: Literal["invoice"] = "invoice"
    number: str | None
    status: InvoiceStatus
    #: Of service, in UTC: `2026-11`.
    month: str
    currency: str
    created_at: int
    issued_at: int | None
    voided_at: int | None
    #: Null until it is issued.
    total: str | None

    @classmethod
    def of(cls, invoice: Invoice) -> Self:
        return cls(
            id=invoice.id,
            number=invoice.number,
            status=invoice.status,
            month=str(Month.of_day(invoice.month_start)),
            currency=invoice.currency,
            created_at=int(invoice.created_at.timestamp()),
            issued_at=None if invoice.issued_at is None else int(invoice.issued_at.timestamp()),
            voided_at=None if invoice.voided_at is None else int(invoice.voided_at.timestamp()),
            total=None if invoice.total is None else exact_text(invoice.total, invoice.currency),
        )


class InvoiceObject(BaseModel):
    """A whole invoice; of one that is not issued, as it would be now. The amounts of its lines sum to its total."""

    id: str
    object: Literal["invoice"] = "invoice"
    number: str | None
    status: InvoiceStatus
    tenant_id: str
    month: str
    currency: str
    customer: dict[str, str]
    supplier: dict[str, str]
    created_at: int
    issued_at: int | None
    voided_at: int | None
    void_reason: str | None
    #: Before any rounding; what the rounding of the lines adds up to; and what is to be paid.
    exact: str
    rounding: str
    total: str
    receipts: InvoiceReceipts | None
    lines: list[dict[str, Any]]
    #: What the lines are made of, by day, project and key.
    items: list[dict[str, Any]]


class ReceiptKey(BaseModel):
    """What the receipts of output files are checked with."""

    object: Literal["receipt_key"] = "receipt_key"
    key_id: str
    algorithm: Literal["Ed25519"] = "Ed25519"
    #: PEM.
    public_key: str
