"""Metering, rating and the ledger: written in the transaction of the result, append-only."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from enum import StrEnum
from typing import Final

from sqlalchemy import CheckConstraint, Date, ForeignKey, Index, Numeric, SmallInteger, text
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.tables.base import Base, Created, Moment, Money, RowId, text_enum
from pipeline.tables.batches import ServiceClass
from pipeline.tables.partitions import PARTITIONED_BY_REQUEST


class Meter(StrEnum):
    """What is counted of a request."""

    INPUT_UNCACHED = "input_uncached"  #: Prompt tokens that were computed.
    INPUT_CACHED = "input_cached"  #: Prompt tokens found in the prefix cache; no event where there are none.
    OUTPUT = "output"  #: Completion tokens over all choices.


#: The plan whose cards hold where a contract names no other.
DEFAULT_PLAN: Final = "default"


class RateCard(Base):
    """One version of the prices of a plan. Immutable once it is published, as are its rates (`tables/rates.py`).

    Of the published cards of a plan that price a model, the one with the latest `effective_from` holds. The amount of
    a usage event is its price x (1 - batch_discount) x the multiplier of its service class, which the scale of `Money`
    holds exactly.

    A card with a `model` has flat prices of that model alone: the database makes its rates from the columns here,
    which is also what processes of the version before read and write.
    """

    __tablename__ = "rate_cards"
    __table_args__ = (
        Index("uq_rate_cards_model_effective_from", "model", "effective_from", unique=True),
        Index("uq_rate_cards_plan_version", "plan", "version", unique=True),
        CheckConstraint("batch_discount BETWEEN 0 AND 1", name="discount_is_a_part"),
        CheckConstraint("priority_multiplier >= 0 AND flex_multiplier >= 0", name="multipliers_not_negative"),
        CheckConstraint(
            "input_price >= 0 AND cached_input_price >= 0 AND output_price >= 0", name="prices_not_negative"
        ),
    )

    id: Mapped[RowId]
    plan: Mapped[str] = mapped_column(server_default=DEFAULT_PLAN)
    #: Of the plan, from 1; given by the database.
    version: Mapped[int] = mapped_column(server_default="0")
    currency: Mapped[str]
    batch_discount: Mapped[Decimal] = mapped_column(Numeric(4, 3))
    #: Of the service classes; that of `standard` is 1.
    priority_multiplier: Mapped[Decimal] = mapped_column(Numeric(6, 3), server_default="1")
    flex_multiplier: Mapped[Decimal] = mapped_column(Numeric(6, 3), server_default="1")
    #: None: never by itself; of a draft, from its publication on.
    effective_from: Mapped[Moment | None] = mapped_column(server_default=text("now()"))
    #: None: a draft.
    published_at: Mapped[Moment | None] = mapped_column(server_default=text("now()"))
    #: SHA-256 of `rate_card_content(id)`, since its publication.
    sha256: Mapped[bytes | None]
    created_at: Mapped[Created]

    model: Mapped[str | None]
    input_price: Mapped[Decimal | None] = mapped_column(Numeric(20, 6))
    cached_input_price: Mapped[Decimal | None] = mapped_column(Numeric(20, 6))
    output_price: Mapped[Decimal | None] = mapped_column(Numeric(20, 6))


class UsageEvent(Base):
    """One meter of one result that a group of an older version has recorded; of all others, `results` has it.

    Its key is what it counts, so that it can't be there twice. Readers ask `pipeline/tables/usage_views.py`.
    """

    __tablename__ = "usage_events"
    __table_args__ = (
        Index("ix_usage_events_tenant_id_occurred_at", "tenant_id", "occurred_at"),
        Index("ix_usage_events_batch_id", "batch_id"),
        PARTITIONED_BY_REQUEST,
    )

    request_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
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
        # One account of a kind per tenant and currency, and per grant; the operator's own have no tenant.
        Index(
            "uq_ledger_accounts",
            "kind",
            "tenant_id",
            "currency",
            "grant_id",
            unique=True,
            postgresql_nulls_not_distinct=True,
        ),
    )

    id: Mapped[RowId]
    #: See `pipeline/billing/ledger.py`.
    kind: Mapped[str]
    tenant_id: Mapped[str | None] = mapped_column(ForeignKey("tenants.id"))
    currency: Mapped[str]
    #: Of accounts of kind `credit`.
    grant_id: Mapped[str | None] = mapped_column(ForeignKey("credit_grants.id"))


class LedgerTransaction(Base):
    """What is posted at once of one tenant; its entries sum to zero.

    Of recorded outcomes and of adjustments, the results and rated lines that refer to it are the detail.
    """

    __tablename__ = "ledger_transactions"

    id: Mapped[RowId]
    #: Derived from what is recorded; unique for ever.
    idempotency_key: Mapped[str] = mapped_column(unique=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    #: Why it was posted: see `pipeline/billing/ledger.py`.
    kind: Mapped[str] = mapped_column(server_default="usage")
    #: First day of the month of the usage that it is about; None: the month, in UTC, in which it was posted.
    period: Mapped[date | None] = mapped_column(Date)
    created_at: Mapped[Created]


class LedgerEntry(Base):
    """A debit (positive) or a credit (negative) of an account."""

    __tablename__ = "ledger_entries"

    transaction_id: Mapped[int] = mapped_column(ForeignKey("ledger_transactions.id"), primary_key=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("ledger_accounts.id"), primary_key=True, index=True)
    amount: Mapped[Money]


class RatedLine(Base):
    """The price of one usage event. A correction is a new revision, which supersedes the one before.

    A first price that is the same for every token is in the row of the result instead. An event without a price is
    unrated: it is never taken for free, and blocks the invoice of its month. Readers ask
    `pipeline/tables/usage_views.py`.
    """

    __tablename__ = "rated_lines"
    __table_args__ = (PARTITIONED_BY_REQUEST,)

    request_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    meter: Mapped[Meter] = mapped_column(text_enum(Meter, "meter"), primary_key=True)
    revision: Mapped[int] = mapped_column(SmallInteger, primary_key=True, server_default="1")
    rate_card_id: Mapped[int]
    ledger_transaction_id: Mapped[int]
    quantity: Mapped[int]
    #: What had been used before by the same rate, tenant, month and service class; 0 where the price is flat.
    quantity_before: Mapped[int] = mapped_column(server_default="0")
    #: Of 1,000,000 tokens, or of a package; None where it depends on the quantity.
    unit_price: Mapped[Decimal | None] = mapped_column(Numeric(20, 6))
    amount: Mapped[Money]
    currency: Mapped[str]
    rated_at: Mapped[Created]
