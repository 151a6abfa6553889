"""Budgets: what may still be spent, what they have paused, and, for operators, setting them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from pipeline.billing.budgets import BudgetState, list_budgets, remove_budget, set_budget
from pipeline.billing.budgets import Scope as BudgetScope
from pipeline.console.operating import Operator
from pipeline.console.rendering import render, see_other
from pipeline.console.signing_in import SignedForm, viewer_with
from pipeline.errors import UserError
from pipeline.gateway.budgets import is_visible
from pipeline.tables import ApiKey, BudgetPeriod, Project, Tenant
from pipeline.tables.session import transaction
from pipeline.tenancy.console_sessions import Viewer
from pipeline.tenancy.projects import find_project
from pipeline.tenancy.scopes import Scope
from pipeline.tenancy.tenants import find_tenant, list_tenants

router = APIRouter()

# Few batches are paused, and an index has them.
_PAUSED: Final = text("""
    SELECT pause_reason AS budget_id, count(*) AS num_batches FROM batches
    WHERE pause_reason IS NOT NULL AND status = 'in_progress' AND pause_reason = ANY(:budget_ids)
    GROUP BY pause_reason
""")


@dataclass(frozen=True)
class Row:
    """A budget with what a person wants to know of it."""

    state: BudgetState
    tenant: str
    #: Whose costs it is for, in words.
    scope: str
    num_paused: int
    #: Whether it is of the viewer's tenant, whose batches the viewer can look at.
    is_own: bool

    @property
    def used_percent(self) -> int:
        """Spent and held, of the limit; 100 where nothing may be spent."""
        budget = self.state.budget
        if not budget.amount:
            return 100
        return min(100, int((self.state.spent + self.state.held) * 100 / budget.amount))


Looker = Annotated[Viewer, Depends(viewer_with(Scope.USAGE_READ))]


@router.get("/budgets")
def show_budgets(request: Request, viewer: Looker) -> Response:
    return _page(request, viewer)


@router.post("/budgets")
def change_budget(request: Request, viewer: Operator, form: SignedForm) -> Response:
    """Make or change one; what was given stays in the form where it can't be done."""
    try:
        with transaction() as session:
            set_budget(
                session,
                _scope(session, form),
                currency=form.get("currency", "").strip().upper(),
                amount=_amount(form.get("amount", "")),
                is_hard=form.get("kind") != "soft",
                period=BudgetPeriod.TOTAL if form.get("period") == "total" else BudgetPeriod.MONTH,
                actor=viewer.principal.api_key_id,
            )
    except UserError as error:
        return _page(request, viewer, mistake=str(error), given=form)
    return see_other("/console/budgets")


@router.post("/budgets/{budget_id}/remove")
def drop_budget(request: Request, viewer: Operator, form: SignedForm, budget_id: str) -> Response:
    try:
        with transaction() as session:
            remove_budget(session, budget_id, actor=viewer.principal.api_key_id)
    except UserError as error:
        return _page(request, viewer, mistake=str(error))
    return see_other("/console/budgets")


def _page(
    request: Request, viewer: Viewer, mistake: str | None = None, given: Mapping[str, str] | None = None
) -> Response:
    with transaction() as session:
        rows = _rows(session, viewer)
        tenants = [tenant.name for tenant in list_tenants(session)] if viewer.is_operator else []
    return render(
        request,
        "budgets.html",
        status=200 if mistake is None else 400,
        rows=rows,
        tenants=tenants,
        mistake=mistake,
        given=given or {},
    )


def _rows(session: Session, viewer: Viewer) -> list[Row]:
    """Operators see all budgets, others those that the API shows them."""
    caller = viewer.principal
    if viewer.is_operator:
        states = list_budgets(session)
    else:
        states = [state for state in list_budgets(session, caller.tenant_id) if is_visible(state, caller)]
    found = session.execute(_PAUSED, {"budget_ids": [state.budget.id for state in states]})
    paused = {row.budget_id: row.num_batches for row in found}
    names = _names(session, states)
    return [
        Row(
            state=state,
            tenant=names[state.budget.tenant_id],
            scope=_words(state, names),
            num_paused=paused.get(state.budget.id, 0),
            is_own=state.budget.tenant_id == caller.tenant_id,
        )
        for state in states
    ]


def _words(state: BudgetState, names: Mapping[str, str]) -> str:
    budget = state.budget
    if budget.project_id is not None:
        return f"project {names.get(budget.project_id, budget.project_id)}"
    if budget.api_key_id is not None:
        return f"key {names.get(budget.api_key_id, budget.api_key_id)}"
    return "the whole tenant"


def _names(session: Session, states: Sequence[BudgetState]) -> dict[str, str]:
    """Of tenants, projects and keys by their ids."""
    budgets = [state.budget for state in states]
    names: dict[str, str] = {}
    for table, ids in (
        (Tenant, {budget.tenant_id for budget in budgets}),
        (Project, {budget.project_id for budget in budgets if budget.project_id}),
        (ApiKey, {budget.api_key_id for budget in budgets if budget.api_key_id}),
    ):
        if ids:
            names |= {
                row.id: row.name for row in session.execute(select(table.id, table.name).where(table.id.in_(ids)))
            }
    return names


def _scope(session: Session, form: Mapping[str, str]) -> BudgetScope:
    """Raises UserError for a tenant, project or key that is not there, or is another tenant's."""
    tenant = find_tenant(session, form.get("tenant", "").strip())
    project, key = form.get("project", "").strip(), form.get("key", "").strip()
    if project and key:
        raise UserError("A budget is of a project or of a key, not of both. Leave one of them empty.")
    if key:
        owner = session.scalar(select(ApiKey.tenant_id).where(ApiKey.id == key))
        if owner != tenant.id:
            raise UserError(f"The tenant {tenant.name!r} has no key {key!r}. The page of keys shows their ids.")
    return BudgetScope(
        tenant_id=tenant.id,
        project_id=find_project(session, tenant.id, project).id if project else None,
        api_key_id=key or None,
    )


def _amount(given: str) -> Decimal:
    try:
        return Decimal(given.strip().replace(",", ""))
    except InvalidOperation:
        raise UserError(f"{given!r} is no amount: give a number, such as 100 or 99.50.") from None
