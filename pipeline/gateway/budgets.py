"""`/v1/organization/budgets`: what the caller may still spend."""

from __future__ import annotations

from fastapi import APIRouter

from pipeline.billing.budgets import list_budgets as budgets_of
from pipeline.gateway.auth import UsageReader
from pipeline.schemas.budgets import BudgetList, BudgetObject
from pipeline.tables.session import transaction

router = APIRouter(prefix="/v1/organization", tags=["usage"])


@router.get("/budgets")
def list_budgets(caller: UsageReader) -> BudgetList:
    """Budgets of the organisation; a key of a project sees those of its project and its own alone."""
    with transaction() as session:
        states = budgets_of(session, caller.tenant_id)
    visible = [
        state
        for state in states
        if caller.project_id is None
        or state.budget.project_id == caller.project_id
        or state.budget.api_key_id == caller.api_key_id
    ]
    return BudgetList(data=[BudgetObject.of(state) for state in visible])
