"""Metering, rating and the ledger: written in the transaction of the result, append-only."""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, Numeric, SmallInteger, text
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.tables.base import Base, Created, Moment, Money, Price, RowId, text_enum
from pipeline.tables.batches import ServiceClass


class Meter(StrEnum):
    """What is counted of a request."""

    INPUT_UNCACHED = "input_uncached"  #: Prompt tokens that were computed.
    INPUT_CACHED = "input_cached"  #: Prompt tokens found in the prefix cache; no event where there are none.
    OUTPUT = "output"  #: Completion tokens over all choices.


class RateCard(Base):
    """Prices of one model from a moment on. A change is a new card; a card in use is never edited.

    The amount of a usage event is quantity x price / 1,000,000 x (1 - batch_discount), which the scale of
    `Money` holds exactly.
    """

    __tablename__ = "rate_cards"
    __table_args__ = (
        Index("uq_rate_cards_model_effective_from", "model", "effective_from", unique=True),
        CheckConstraint("batch_discount BETWEEN 0 AND 1", name="discount_is_a_part"),
        CheckConstraint(
            "input_price >= 0 AND cached_input_price >= 0 AND output_price >= 0", name="prices_not_negative"
        ),
    )

    id: Mapped[RowId]
    model: Mapped[str]
    currency: Mapped[str]
    input_price: Mapped[Price]
    cached_input_price: Mapped[Price]
    output_price: Mapped[Price]
    batch_discount: Mapped[Decimal] = mapped_column(Numeric(4, 3))
    effective_from: Mapped[Moment] = mapped_column(server_default=text("now()"))
    created_at: Mapped[Created]


class UsageEvent(Base):
    """One meter of one result. Its key is what it counts, so that it can't be there twice."""

    __tablename__ = "usage_events"
    __table_args__ = (
        Index("ix_usage_events_tenant_id_occurred_at", "tenant_id", "occurred_at"),
        Index("ix_usage_events_batch_id", "batch_id"),
    )

    request_id: Mapped[int] = mapped_column(ForeignKey("results.request_id"), primary_key=True, autoincrement=False)
    meter: Mapped[Meter] = mapped_column(text_enum(Meter, "meter"), primary_key=True)
    #: Tokens.
    quantity: Mapped[int]
    tenant_id: Mapped[str]
    api_key_id: Mapped[str]
    batch_id: Mapped[str]
    project_id: Mapped[str | None]
    service_class: Mapped[ServiceClass] = mapped_column(
        text_enum(ServiceClass, "service_class"), server_default=ServiceClass.STANDARD.value
    )
    model: Mapped[str]
    group_id: Mapped[str]
    #: The request's share of its engine's time; carried by the output event alone, so that sums are right.
    engine_ms: Mapped[int]
    occurred_at: Mapped[Created]


class LedgerAccount(Base):
    __tablename__ = "ledger_accounts"
    __table_args__ = (
        # One account of a kind per tenant and currency; the operator's own have no tenant.
        Index("uq_ledger_accounts", "kind", "tenant_id", "currency", unique=True, postgresql_nulls_not_distinct=True),
    )

    id: Mapped[RowId]
    #: `receivable` (of a tenant) or `revenue` (the operator's).
    kind: Mapped[str]
    tenant_id: Mapped[str | None] = mapped_column(ForeignKey("tenants.id"))
    currency: Mapped[str]


class LedgerTransaction(Base):
    """One recorded group of outcomes of one tenant; its entries sum to zero, its rated lines are its detail."""

    __tablename__ = "ledger_transactions"

    id: Mapped[RowId]
    #: Derived from what is recorded; unique for ever.
    idempotency_key: Mapped[str] = mapped_column(unique=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    created_at: Mapped[Created]


class LedgerEntry(Base):
    """A debit (positive) or a credit (negative) of an account."""

    __tablename__ = "ledger_entries"

    transaction_id: Mapped[int] = mapped_column(ForeignKey("ledger_transactions.id"), primary_key=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("ledger_accounts.id"), primary_key=True, index=True)
    amount: Mapped[Money]


class RatedLine(Base):
    """The price of one usage event. A correction is a new revision, which supersedes the one before."""

    __tablename__ = "rated_lines"
    __table_args__ = (ForeignKeyConstraint(["request_id", "meter"], ["usage_events.request_id", "usage_events.meter"]),)

    request_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    meter: Mapped[Meter] = mapped_column(text_enum(Meter, "meter"), primary_key=True)
    revision: Mapped[int] = mapped_column(SmallInteger, primary_key=True, server_default="1")
    rate_card_id: Mapped[int] = mapped_column(ForeignKey("rate_cards.id"))
    ledger_transaction_id: Mapped[int] = mapped_column(ForeignKey("ledger_transactions.id"))
    quantity: Mapped[int]
    unit_price: Mapped[Price]
    amount: Mapped[Money]
    currency: Mapped[str]
    rated_at: Mapped[Created]
