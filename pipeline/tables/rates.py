"""Rates of a card, contracts, credits, the quantities that tiers are counted by, and waste."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from enum import StrEnum
from typing import Any

from sqlalchemy import CheckConstraint, Date, ForeignKey, Index, Numeric, SmallInteger, Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.tables.base import Base, Created, Moment, Money, Price, RowId, text_enum
from pipeline.tables.billing import Meter


class Pricing(StrEnum):
    """How a price depends on what a tenant has used in the month."""

    FLAT = "flat"  #: Every token costs the same.
    GRADUATED = "graduated"  #: Each token costs what its tier does.
    VOLUME = "volume"  #: All tokens of the month cost what the tier of their number does.
    PACKAGE = "package"  #: By whole packages of tokens, begun ones too.


class Rate(Base):
    """What one meter of one model costs by a card. Immutable as soon as its card is published."""

    __tablename__ = "rates"
    __table_args__ = (
        Index("ix_rates_model", "model"),
        CheckConstraint("(pricing IN ('flat', 'package')) = (unit_price IS NOT NULL)", name="has_unit_price"),
        CheckConstraint("(pricing IN ('graduated', 'volume')) = (tiers IS NOT NULL)", name="has_tiers"),
        CheckConstraint("(pricing = 'package') = (package_size IS NOT NULL)", name="has_package_size"),
        CheckConstraint("unit_price >= 0 AND package_size > 0 AND minimum >= 0", name="not_negative"),
    )

    rate_card_id: Mapped[int] = mapped_column(
        ForeignKey("rate_cards.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    model: Mapped[str] = mapped_column(primary_key=True)
    meter: Mapped[Meter] = mapped_column(text_enum(Meter, "meter"), primary_key=True)
    pricing: Mapped[Pricing] = mapped_column(text_enum(Pricing, "pricing"))
    #: Of 1,000,000 tokens; of one package where it is by packages.
    unit_price: Mapped[Decimal | None] = mapped_column(Numeric(20, 6))
    #: Tokens.
    package_size: Mapped[int | None]
    #: `[{"up_to": 1000, "price": "0.4"}, {"up_to": null, "price": "0.3"}]`, in order; prices are of 1,000,000 tokens.
    tiers: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB(none_as_null=True))
    #: Least that a month costs in which anything is used, before multipliers.
    minimum: Mapped[Price] = mapped_column(server_default="0")


class Contract(Base):
    """The terms of a tenant from a moment on. A change is a new contract."""

    __tablename__ = "contracts"
    __table_args__ = (
        Index("ix_contracts_tenant_id_effective_from", "tenant_id", "effective_from"),
        CheckConstraint("(commitment IS NULL) = (currency IS NULL) AND commitment > 0", name="commitment_has_currency"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    #: Whose cards hold; for models that they do not price, those of the default plan.
    plan: Mapped[str]
    #: A plan of this contract's own, which goes before `plan`.
    overrides: Mapped[str | None]
    #: Least that a month is billed.
    commitment: Mapped[Decimal | None] = mapped_column(Numeric(38, 15))
    currency: Mapped[str | None]
    effective_from: Mapped[Created]
    created_at: Mapped[Created]


class CreditGrant(Base):
    """Credit that was given to a tenant. What is left of it is the balance of its account in the ledger."""

    __tablename__ = "credit_grants"
    __table_args__ = (
        Index("ix_credit_grants_tenant_id", "tenant_id"),
        CheckConstraint("amount > 0", name="positive"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    currency: Mapped[str]
    amount: Mapped[Money]
    #: Lower is spent first.
    priority: Mapped[int] = mapped_column(SmallInteger)
    #: None: never.
    expires_at: Mapped[Moment | None]
    reason: Mapped[str]
    created_at: Mapped[Created]


class RatingCounter(Base):
    """What a tenant has used in a month by one rate that depends on it; flat rates have none."""

    __tablename__ = "rating_counters"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    #: Its first day, in UTC.
    month: Mapped[date] = mapped_column(Date, primary_key=True)
    rate_card_id: Mapped[int] = mapped_column(ForeignKey("rate_cards.id"), primary_key=True, autoincrement=False)
    model: Mapped[str] = mapped_column(primary_key=True)
    meter: Mapped[Meter] = mapped_column(text_enum(Meter, "meter"), primary_key=True)
    service_class: Mapped[str] = mapped_column(Text, primary_key=True)
    quantity: Mapped[int]


class WasteCause(StrEnum):
    """Why computed tokens came to nothing."""

    CRASH = "crash"  #: An engine crashed with them.
    DRAIN = "drain"  #: A group was stopped.
    LOST_LEASE = "lost_lease"  #: The group had lost the slice by then.
    FAILED = "failed"  #: The request failed.
    CANCELLED = "cancelled"  #: Its batch was cancelled.
    EXPIRED = "expired"  #: Its window passed.
    RECOMPUTED = "recomputed"  #: What an earlier attempt had computed already, once more.


class Waste(Base):
    """Work of an attempt that came to nothing; the operator's own, never billed. Append-only."""

    __tablename__ = "waste"
    __table_args__ = (
        Index("ix_waste_created_at", "created_at"),
        Index("ix_waste_slice_id_lease_epoch", "slice_id", "lease_epoch"),
    )

    id: Mapped[RowId]
    slice_id: Mapped[int]
    lease_epoch: Mapped[int]
    batch_id: Mapped[str]
    tenant_id: Mapped[str]
    model: Mapped[str]
    group_id: Mapped[str]
    cause: Mapped[WasteCause] = mapped_column(text_enum(WasteCause, "cause"))
    num_tokens: Mapped[int]
    #: None where the group can't tell.
    engine_ms: Mapped[int | None]
    created_at: Mapped[Created]
