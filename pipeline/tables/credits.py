"""What tenants were credited."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import CheckConstraint, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.tables.base import Base, Created, Money, text_enum


class CreditReason(StrEnum):
    """Why a credit was given."""

    MISSED_WINDOW = "missed_window"  #: A batch had not ended when its completion window did.


class CreditNote(Base):
    """An amount that a tenant does not owe after all, posted to the ledger. One per batch, reason and currency."""

    __tablename__ = "credit_notes"
    __table_args__ = (
        Index("uq_credit_notes_batch_id_reason_currency", "batch_id", "reason", "currency", unique=True),
        Index("ix_credit_notes_tenant_id_created_at", "tenant_id", "created_at"),
        CheckConstraint("amount > 0", name="amount_positive"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    batch_id: Mapped[str] = mapped_column(ForeignKey("batches.id"))
    reason: Mapped[CreditReason] = mapped_column(text_enum(CreditReason, "reason"))
    currency: Mapped[str]
    #: What is credited, positive.
    amount: Mapped[Money]
    ledger_transaction_id: Mapped[int] = mapped_column(ForeignKey("ledger_transactions.id"))
    created_at: Mapped[Created]
