"""`ryzanstein budgets …`: how much tenants, their projects and their keys may cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pipeline.cli.connecting import DATA_DIR, JSON, TENANT, decimal_of, find_key_id, find_tenant_id, open_database

if TYPE_CHECKING:
    from pipeline.billing.budgets import BudgetState

_CURRENCY = typer.Option("USD", help="Code of ISO 4217; what is priced in another does not count.")


def register(app: typer.Typer) -> None:
    budgets = typer.Typer(help="How much tenants, projects and keys may cost.", no_args_is_help=True)
    budgets.command("set")(set_budget)
    budgets.command("list")(list_budgets)
    budgets.command("remove")(remove_budget)
    budgets.command("prepaid")(make_prepaid)
    app.add_typer(budgets, name="budgets")


def set_budget(
    tenant: str = typer.Argument(help="Name of the tenant."),
    amount: str = typer.Argument(help="Amount of a month."),
    currency: str = _CURRENCY,
    project: str | None = typer.Option(None, help="Only of this project of the tenant."),
    key: str | None = typer.Option(None, help="Only of the key with this id."),
    soft: bool = typer.Option(False, "--soft", help="Alert at its limit, and stop nothing."),
    total: bool = typer.Option(False, "--total", help="For ever from now on, rather than for each month."),
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
) -> None:
    """Make or change a budget. At its limit batches pause, and go on when there is room again; nothing is lost."""
    from pipeline.billing.budgets import Scope
    from pipeline.billing.budgets import set_budget as set_it
    from pipeline.tables import BudgetPeriod
    from pipeline.tenancy.projects import find_project
    from pipeline.tenancy.tenants import find_tenant

    if project is not None and key is not None:
        raise typer.BadParameter("A budget is of a project or of a key, not of both.", param_hint="--key")
    with open_database(data_dir) as session:
        owner = find_tenant(session, tenant)
        scope = Scope(
            tenant_id=owner.id,
            project_id=find_project(session, owner.id, project).id if project is not None else None,
            api_key_id=find_key_id(session, owner, key) if key is not None else None,
        )
        budget = set_it(
            session,
            scope,
            currency=currency,
            amount=decimal_of("AMOUNT", amount),
            is_hard=not soft,
            period=BudgetPeriod.TOTAL if total else BudgetPeriod.MONTH,
        )
    typer.echo(json.dumps({"id": budget.id}) if as_json else budget.id)


def list_budgets(tenant: str | None = TENANT, data_dir: Path | None = DATA_DIR, as_json: bool = JSON) -> None:
    """List budgets and what of them is spent, held for requests that run, and free."""
    from pipeline.billing.budgets import list_budgets as list_them
    from pipeline.cli.rendering import print_table
    from pipeline.tenancy.tenants import list_tenants

    with open_database(data_dir) as session:
        names = {row.id: row.name for row in list_tenants(session)}
        records = [_record(state, names) for state in list_them(session, find_tenant_id(session, tenant))]
    if as_json:
        typer.echo(json.dumps(records, indent=2))
        return
    headers = ["budget", "tenant", "scope", "period", "limit", "#amount", "#spent", "#held", "#free", "currency"]
    print_table(headers, [[str(value) for value in record.values()] for record in records])


def remove_budget(
    budget: str = typer.Argument(help="Id of a budget."), data_dir: Path | None = DATA_DIR, as_json: bool = JSON
) -> None:
    """Remove a budget; batches that it has paused go on."""
    from pipeline.billing.budgets import remove_budget as remove_it

    with open_database(data_dir) as session:
        remove_it(session, budget)
    typer.echo(json.dumps({"id": budget, "removed": True}) if as_json else f"Budget {budget} is removed.")


def make_prepaid(
    tenant: str = typer.Argument(help="Name of the tenant."),
    currency: str = _CURRENCY,
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
) -> None:
    """Let a tenant spend no more than its credit, from now on: what is left now, and what is granted later."""
    from pipeline.billing.credits import limit_to_credit
    from pipeline.tenancy.tenants import find_tenant

    with open_database(data_dir) as session:
        tenant_id = find_tenant(session, tenant).id
        budget = limit_to_credit(session, tenant_id, currency)
    typer.echo(json.dumps({"id": budget.id}) if as_json else budget.id)


def _record(state: BudgetState, names: dict[str, str]) -> dict[str, Any]:
    from pipeline.billing.currencies import exact_text

    budget = state.budget
    amounts = {"amount": budget.amount, "spent": state.spent, "held": state.held, "free": state.room}
    return {
        "id": budget.id,
        "tenant": names[budget.tenant_id],
        "scope": budget.project_id or budget.api_key_id or "tenant",
        "period": "prepaid" if budget.is_prepaid else budget.period.value,
        "limit": "hard" if budget.is_hard else "soft",
        **{name: exact_text(amount, budget.currency) for name, amount in amounts.items()},
        "currency": budget.currency,
    }
