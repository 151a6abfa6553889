"""Commands of the operator, which talk to SQL: keys."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from pipeline.cli.connecting import DATA_DIR, JSON, TENANT, find_tenant_id, open_database


def register(app: typer.Typer) -> None:
    keys = typer.Typer(help="API keys of tenants.", no_args_is_help=True)
    keys.command("create")(create_key)
    keys.command("list")(list_keys)
    keys.command("revoke")(revoke_key)
    app.add_typer(keys, name="keys")


def create_key(
    tenant: str = typer.Option("default", help="Whose key; a tenant that is not there is made."),
    name: str = typer.Option("key", help="What the key is for; usage can be reported by it."),
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
) -> None:
    """Make a key and print it, this once."""
    from pipeline.tenancy import keys
    from pipeline.tenancy.tenants import ensure_tenant

    with open_database(data_dir) as session:
        owner = ensure_tenant(session, tenant)
        row, key = keys.create_key(session, owner.id, name)
    if as_json:
        typer.echo(json.dumps({"id": row.id, "tenant": tenant, "tenant_id": owner.id, "name": name, "key": key}))
        return
    typer.echo(key)
    typer.echo(f"Key {row.id} of tenant {tenant}. It can't be shown again.", err=True)


def list_keys(tenant: str | None = TENANT, data_dir: Path | None = DATA_DIR, as_json: bool = JSON) -> None:
    """List keys, without their secrets."""
    from pipeline.cli.rendering import print_table
    from pipeline.tenancy import keys
    from pipeline.tenancy.tenants import list_tenants

    with open_database(data_dir) as session:
        names = {row.id: row.name for row in list_tenants(session)}
        found = keys.list_keys(session, find_tenant_id(session, tenant))
    records = [
        {
            "id": key.id,
            "tenant": names[key.tenant_id],
            "name": key.name,
            "starts_with": f"rz_{key.short_id}_",
            "created_at": key.created_at.isoformat(timespec="seconds"),
            "last_used_at": key.last_used_at and key.last_used_at.isoformat(timespec="seconds"),
            "revoked_at": key.revoked_at and key.revoked_at.isoformat(timespec="seconds"),
        }
        for key in found
    ]
    if as_json:
        typer.echo(json.dumps(records, indent=2))
        return
    headers = ["id", "tenant", "name", "starts_with", "created_at", "last_used_at", "revoked_at"]
    print_table(headers, [[str(record[header] or "") for header in headers] for record in records])


def revoke_key(
    key: str = typer.Argument(help="Id of the key, or the part of it between `rz_` and the next `_`."),
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
) -> None:
    """Refuse a key from the next call on. What it has submitted goes on."""
    from pipeline.tenancy import keys

    with open_database(data_dir) as session:
        row = keys.revoke_key(session, key)
    if as_json:
        typer.echo(json.dumps({"id": row.id, "revoked_at": row.revoked_at and row.revoked_at.isoformat()}))
    else:
        typer.echo(f"{row.id} is revoked.")
