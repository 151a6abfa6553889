"""Invoices: numbered when they are issued, and immutable from then on (triggers hold it)."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from enum import StrEnum
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, Numeric, SmallInteger, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.tables.base import Base, Created, Moment, Money, text_enum
from pipeline.tables.batches import ServiceClass
from pipeline.tables.billing import Meter


class InvoiceStatus(StrEnum):
    """In the order in which an invoice gets them."""

    DRAFT = "draft"  #: Its month runs; its lines are read anew at every look.
    COLLECTING = "collecting"  #: Its month is over, and what was still under way may come in.
    FINAL = "final"  #: Issued: numbered, and immutable.
    VOID = "void"  #: Taken back; it keeps its number, and what it billed may be billed again.


class LineKind(StrEnum):
    """What a line of an invoice is for."""

    USAGE = "usage"  #: Tokens of the invoice's own month.
    CORRECTION = "correction"  #: What an issued invoice of an earlier month had too little, or (negative) too much.
    COMMITMENT = "commitment"  #: What the month's usage is short of the contract's minimum.
    CREDIT_NOTE = "credit_note"  #: Given back for a window that was missed; negative.
    CREDIT = "credit"  #: Paid from prepaid credits; negative.
    ROUNDING = "rounding"  #: What the rounding of the lines adds up to, so that lines + rounding = total.


class Invoice(Base):
    """What a tenant owes for a month, in one currency."""

    __tablename__ = "invoices"
    __table_args__ = (
        # One that counts per month; whatever was taken back stays beside it.
        Index(
            "uq_invoices_of_month",
            "tenant_id",
            "currency",
            "month_start",
            unique=True,
            postgresql_where="status <> 'void'",
        ),
        Index("ix_invoices_tenant_id_created_at", "tenant_id", "created_at", "id"),
        CheckConstraint("(status = 'final') <= (number IS NOT NULL)", name="final_has_number"),
        CheckConstraint("(number IS NULL) = (issued_at IS NULL)", name="number_is_of_issue"),
        CheckConstraint("(number IS NULL) = (total IS NULL)", name="issued_has_total"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    currency: Mapped[str]
    #: First day of the service period, a calendar month in UTC.
    month_start: Mapped[date]
    status: Mapped[InvoiceStatus] = mapped_column(text_enum(InvoiceStatus, "status"))
    #: Given when it is issued: without gaps within the year of the issue.
    number: Mapped[str | None] = mapped_column(unique=True)
    #: As they were when it was made: `Party` records.
    customer: Mapped[dict[str, Any]] = mapped_column(JSONB)
    supplier: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created_at: Mapped[Created]
    issued_at: Mapped[Moment | None]
    voided_at: Mapped[Moment | None]
    void_reason: Mapped[str | None]
    #: The sum of its lines before any rounding, and what is to be paid: that sum, rounded once.
    exact: Mapped[Decimal | None] = mapped_column(Numeric(38, 15))
    total: Mapped[Decimal | None] = mapped_column(Numeric(38, 15))
    #: Of the receipts of its month: hex of the root of their Merkle tree, and how many they are.
    receipts_root: Mapped[str | None]
    num_receipts: Mapped[int | None]


class InvoiceLine(Base):
    """One line of an issued invoice, rounded once."""

    __tablename__ = "invoice_lines"
    __table_args__ = (Index("ix_invoice_lines_credit_note_id", "credit_note_id"),)

    invoice_id: Mapped[str] = mapped_column(ForeignKey("invoices.id"), primary_key=True)
    #: From 1.
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[LineKind] = mapped_column(text_enum(LineKind, "kind"))
    description: Mapped[str]
    #: First day of the month in which what is billed was used.
    service_month: Mapped[date]
    model: Mapped[str | None]
    meter: Mapped[Meter | None] = mapped_column(text_enum(Meter, "meter"))
    service_class: Mapped[ServiceClass | None] = mapped_column(text_enum(ServiceClass, "service_class"))
    rate_card_id: Mapped[int | None]
    #: Of 1,000,000 tokens; None where one price does not hold for all of them.
    unit_price: Mapped[Decimal | None] = mapped_column(Numeric(20, 6))
    #: Tokens; negative where a correction takes some back.
    quantity: Mapped[int | None]
    exact: Mapped[Money]
    #: `exact` in the currency's minor unit, half away from zero.
    amount: Mapped[Money]
    #: The credit note that the line passes on.
    credit_note_id: Mapped[str | None]


class InvoiceItem(Base):
    """What a line of an issued invoice is made of, by day, project and key: the data of its charts and exports."""

    __tablename__ = "invoice_items"
    __table_args__ = (
        ForeignKeyConstraint(["invoice_id", "position"], ["invoice_lines.invoice_id", "invoice_lines.position"]),
    )

    invoice_id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    #: Of its line.
    position: Mapped[int]
    #: In UTC.
    day: Mapped[date]
    project_id: Mapped[str | None]
    api_key_id: Mapped[str]
    model: Mapped[str]
    meter: Mapped[Meter] = mapped_column(text_enum(Meter, "meter"))
    service_class: Mapped[ServiceClass] = mapped_column(text_enum(ServiceClass, "service_class"))
    rate_card_id: Mapped[int]
    unit_price: Mapped[Decimal | None] = mapped_column(Numeric(20, 6))
    #: Usage events.
    num_events: Mapped[int]
    quantity: Mapped[int]
    exact: Mapped[Money]


class InvoiceNumber(Base):
    """The last number of a year. Who issues takes the next under the row's lock, so that none is left out."""

    __tablename__ = "invoice_numbers"

    year: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    last: Mapped[int]


class BillingDetails(Base):
    """Who an invoice of a tenant is made out to; without a row, to the tenant's name."""

    __tablename__ = "billing_details"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    name: Mapped[str]
    #: Lines, one below the other.
    address: Mapped[str] = mapped_column(server_default=text("''"))
    tax_id: Mapped[str] = mapped_column(server_default=text("''"))
    #: What the customer wants to read on it, such as an order's number.
    reference: Mapped[str] = mapped_column(server_default=text("''"))
