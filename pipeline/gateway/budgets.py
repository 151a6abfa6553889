"""`/v1/organization/budgets`: what the caller may still spend."""

from __future__ import annotations

from fastapi import APIRouter

from pipeline.billing.budgets import BudgetState
from pipeline.billing.budgets import list_budgets as budgets_of
from pipeline.gateway.auth import UsageReader
from pipeline.schemas.budgets import BudgetList, BudgetObject
from pipeline.tables.session import transaction
from pipeline.tenancy.keys import Principal

router = APIRouter(prefix="/v1/organization", tags=["usage"])


@router.get("/budgets")
def list_budgets(caller: UsageReader) -> BudgetList:
    """Budgets of the organisation; a key of a project sees those of its project and its own alone."""
    with transaction() as session:
        states = budgets_of(session, caller.tenant_id)
    return BudgetList(data=[BudgetObject.of(state) for state in states if is_visible(state, caller)])


def is_visible(state: BudgetState, caller: Principal) -> bool:
    """Whether the caller may see this budget of its tenant."""
    budget = state.budget
    return caller.project_id in (None, budget.project_id) or budget.api_key_id == caller.api_key_id
