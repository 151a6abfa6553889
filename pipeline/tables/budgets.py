"""Budgets, what has been spent of them in each period, and holds for what may still be spent."""

from __future__ import annotations

from datetime import date
from enum import StrEnum

from sqlalchemy import CheckConstraint, Date, ForeignKey, Index, SmallInteger
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.tables.base import Base, Created, Money, text_enum


class BudgetPeriod(StrEnum):
    """How long a budget lasts."""

    MONTH = "month"  #: Whole again with every month, in UTC.
    TOTAL = "total"  #: For ever.


class Budget(Base):
    """How much a tenant, or one of its projects, keys or batches, may cost in a currency.

    What is null is no condition: the budget of a tenant has none of project, key and batch.
    """

    __tablename__ = "budgets"
    __table_args__ = (
        # One of a kind per scope: setting it again changes it.
        Index(
            "uq_budgets_scope",
            "tenant_id",
            "project_id",
            "api_key_id",
            "batch_id",
            "currency",
            "period",
            "is_prepaid",
            unique=True,
            postgresql_nulls_not_distinct=True,
        ),
        # Of what pays for a batch: one by each.
        Index("ix_budgets_batch_id", "batch_id", postgresql_where="batch_id IS NOT NULL"),
        Index("ix_budgets_tenant_id", "tenant_id", postgresql_where="batch_id IS NULL"),
        CheckConstraint("num_nonnulls(project_id, api_key_id, batch_id) <= 1", name="one_scope"),
        CheckConstraint("amount >= 0", name="not_negative"),
        CheckConstraint("NOT is_prepaid OR (period = 'total' AND is_hard)", name="prepaid_is_hard"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    project_id: Mapped[str | None]
    api_key_id: Mapped[str | None] = mapped_column(ForeignKey("api_keys.id"))
    batch_id: Mapped[str | None] = mapped_column(ForeignKey("batches.id"))
    currency: Mapped[str]
    period: Mapped[BudgetPeriod] = mapped_column(text_enum(BudgetPeriod, "period"))
    amount: Mapped[Money]
    #: Whether claims stop at its limit; else it only alerts.
    is_hard: Mapped[bool]
    #: Whether credit that is granted later is added to it.
    is_prepaid: Mapped[bool]
    created_at: Mapped[Created]


class BudgetUse(Base):
    """What one period of a budget has seen. Whoever claims or records under it locks this row."""

    __tablename__ = "budget_uses"
    budget_id: Mapped[str] = mapped_column(ForeignKey("budgets.id", ondelete="CASCADE"), primary_key=True)
    #: First day of the period; of a budget without end, always the same.
    period_start: Mapped[date] = mapped_column(Date, primary_key=True)
    spent: Mapped[Money] = mapped_column(server_default="0")
    #: The sum of its holds.
    held: Mapped[Money] = mapped_column(server_default="0")
    #: Highest threshold, in percent, that has been alerted.
    alerted_percent: Mapped[int] = mapped_column(SmallInteger, server_default="0")


class Hold(Base):
    """The most that the requests of a claimed slice may still cost under one budget; gone when the claim ends."""

    __tablename__ = "holds"
    __table_args__ = (Index("ix_holds_budget_id", "budget_id"),)

    slice_id: Mapped[int] = mapped_column(ForeignKey("slices.id"), primary_key=True, autoincrement=False)
    budget_id: Mapped[str] = mapped_column(ForeignKey("budgets.id", ondelete="CASCADE"), primary_key=True)
    #: Of the period that was the present one at the claim; what the slice costs counts there.
    period_start: Mapped[date] = mapped_column(Date)
    amount: Mapped[Money]
    #: The card that it was counted by, and that prices what it is for; None of groups of the version before.
    rate_card_id: Mapped[int | None]
    created_at: Mapped[Created]
