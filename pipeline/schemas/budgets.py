"""Budgets, as the API shows them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel

from pipeline.billing.budgets import BudgetState
from pipeline.billing.currencies import exact_text
from pipeline.tables import BudgetPeriod


class BudgetObject(BaseModel):
    """A budget and its present period. Amounts are decimal strings."""

    id: str
    object: Literal["organization.budget"] = "organization.budget"
    #: Null: of the whole organisation, unless it is of a key.
    project_id: str | None
    api_key_id: str | None
    currency: str
    period: BudgetPeriod
    #: Whether batches pause at its limit.
    is_hard: bool
    #: Whether it is credit that was paid ahead.
    is_prepaid: bool
    amount: str
    spent: str
    #: The most that requests that run may still cost.
    held: str

    @classmethod
    def of(cls, state: BudgetState) -> Self:
        budget = state.budget
        return cls(
            id=budget.id,
            project_id=budget.project_id,
            api_key_id=budget.api_key_id,
            currency=budget.currency,
            period=budget.period,
            is_hard=budget.is_hard,
            is_prepaid=budget.is_prepaid,
            amount=exact_text(budget.amount, budget.currency),
            spent=exact_text(state.spent, budget.currency),
            held=exact_text(state.held, budget.currency),
        )


class BudgetList(BaseModel):
    object: Literal["list"] = "list"
    data: list[BudgetObject]
