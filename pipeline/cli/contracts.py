"""`ryzanstein contracts …` and `ryzanstein credits …`: the terms of tenants, and what they were given."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from pipeline.cli.connecting import (
    DATA_DIR,
    JSON,
    TENANT,
    decimal_of,
    find_tenant_id,
    moment_of,
    open_database,
    read_text_file,
)

_TENANT = typer.Argument(help="Name of the tenant.")
_CURRENCY = typer.Option("USD", help="Code of ISO 4217.")


def register(app: typer.Typer) -> None:
    contracts = typer.Typer(help="Plans, own prices and minimums of tenants.", no_args_is_help=True)
    contracts.command("make")(make_contract)
    contracts.command("list")(list_contracts)
    app.add_typer(contracts, name="contracts")
    credits = typer.Typer(help="Credit that pays for usage.", no_args_is_help=True)
    credits.command("grant")(grant_credit)
    credits.command("list")(list_credits)
    app.add_typer(credits, name="credits")


def make_contract(
    tenant: str = _TENANT,
    plan: str = typer.Option("default", help="Whose prices hold; models that it leaves out cost as on `default`."),
    overrides: Path | None = typer.Option(
        None, help="YAML of own prices: `models`, as in a rate card. What it leaves out stays as it is now."
    ),
    commitment: str | None = typer.Option(None, help="Least that a month is billed."),
    currency: str = _CURRENCY,
    effective_from: str | None = typer.Option(None, "--from", help="Moment in UTC. (default: now)"),
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
) -> None:
    """Give a tenant new terms; they take the place of its contract before."""
    from pipeline.billing import contracts
    from pipeline.billing.card_files import read_overrides_file
    from pipeline.tenancy.tenants import find_tenant

    own = read_overrides_file(read_text_file(overrides)) if overrides else None
    with open_database(data_dir) as session:
        contract = contracts.make_contract(
            session,
            find_tenant(session, tenant).id,
            plan=plan,
            overrides=own,
            commitment=decimal_of("--commitment", commitment) if commitment else None,
            currency=currency if commitment else None,
            effective_from=moment_of("--from", effective_from),
        )
    if as_json:
        typer.echo(json.dumps({"id": contract.id, "effective_from": contract.effective_from.isoformat()}))
    else:
        typer.echo(f"Contract {contract.id} of {tenant} holds from {contract.effective_from:%Y-%m-%d %H:%M:%S} UTC on.")


def list_contracts(tenant: str | None = TENANT, data_dir: Path | None = DATA_DIR, as_json: bool = JSON) -> None:
    """List contracts, the latest of each tenant first."""
    from pipeline.billing import contracts
    from pipeline.billing.currencies import exact_text
    from pipeline.cli.rendering import print_table
    from pipeline.tenancy.tenants import list_tenants

    with open_database(data_dir) as session:
        names = {row.id: row.name for row in list_tenants(session)}
        found = contracts.list_contracts(session, find_tenant_id(session, tenant))
    records = [
        {
            "id": contract.id,
            "tenant": names[contract.tenant_id],
            "plan": contract.plan,
            "overrides": contract.overrides or "",
            "commitment": exact_text(contract.commitment, contract.currency or "") if contract.commitment else "",
            "currency": contract.currency or "",
            "effective_from": contract.effective_from.isoformat(timespec="seconds"),
        }
        for contract in found
    ]
    if as_json:
        typer.echo(json.dumps(records, indent=2))
        return
    headers = ["id", "tenant", "plan", "overrides", "#commitment", "currency", "effective_from"]
    print_table(headers, [[record[header.lstrip("#")] for header in headers] for record in records])


def grant_credit(
    tenant: str = _TENANT,
    amount: str = typer.Argument(help="What is given."),
    currency: str = _CURRENCY,
    reason: str = typer.Option(..., help="Why, such as `prepaid` or `goodwill`."),
    priority: int = typer.Option(100, help="From 0 on; the lowest is spent first."),
    expires: str | None = typer.Option(None, help="Moment in UTC. (default: never)"),
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
) -> None:
    """Give a tenant credit: it pays for what is used from now on, until it is spent or expires."""
    from pipeline.billing import credits
    from pipeline.tenancy.tenants import find_tenant

    with open_database(data_dir) as session:
        tenant_id = find_tenant(session, tenant).id
        grant = credits.grant_credit(
            session,
            tenant_id,
            amount=decimal_of("AMOUNT", amount),
            currency=currency,
            reason=reason,
            priority=priority,
            expires_at=moment_of("--expires", expires),
        )
        balance = credits.credit_balance(session, tenant_id, currency)
    if as_json:
        typer.echo(json.dumps({"id": grant.id, "balance": f"{balance:f}", "currency": currency}))
    else:
        typer.echo(f"Grant {grant.id}. {tenant} now has {balance:f} {currency} of credit.")


def list_credits(tenant: str | None = TENANT, data_dir: Path | None = DATA_DIR, as_json: bool = JSON) -> None:
    """List grants of credit and what is left of each."""
    from pipeline.billing import credits
    from pipeline.billing.currencies import exact_text
    from pipeline.cli.rendering import print_table
    from pipeline.tenancy.tenants import list_tenants

    with open_database(data_dir) as session:
        names = {row.id: row.name for row in list_tenants(session)}
        wanted = find_tenant_id(session, tenant)
        found = credits.list_grants(session, wanted)
        owners = sorted({(grant.tenant_id, grant.currency) for grant in found})
        left = {key: value for owner in owners for key, value in credits.credit_left(session, *owner).items()}
    records = [
        {
            "id": grant.id,
            "tenant": names[grant.tenant_id],
            "currency": grant.currency,
            "amount": exact_text(grant.amount, grant.currency),
            "left": exact_text(left[grant.id], grant.currency) if grant.id in left else "expired",
            "priority": grant.priority,
            "expires_at": grant.expires_at.isoformat(timespec="seconds") if grant.expires_at else "never",
            "reason": grant.reason,
        }
        for grant in found
    ]
    if as_json:
        typer.echo(json.dumps(records, indent=2))
        return
    headers = ["id", "tenant", "currency", "#amount", "#left", "#priority", "expires_at", "reason"]
    print_table(headers, [[str(record[header.lstrip("#")]) for header in headers] for record in records])
