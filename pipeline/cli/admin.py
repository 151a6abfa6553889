"""Commands of the operator, which talk to SQL: keys."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pipeline.cli import tenants, verifying
from pipeline.cli.connecting import DATA_DIR, JSON, TENANT, find_tenant_id, open_database
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.tables import ApiKey


def register(app: typer.Typer) -> None:
    keys = typer.Typer(help="API keys of tenants.", no_args_is_help=True)
    keys.command("create")(create_key)
    keys.command("list")(list_keys)
    keys.command("rotate")(rotate_key)
    keys.command("revoke")(revoke_key)
    verifying.register_key(keys)
    app.add_typer(keys, name="keys")
    tenants.register(app)


def create_key(
    tenant: str = typer.Option("default", help="Whose key; a tenant that is not there is made."),
    name: str = typer.Option("key", help="What the key is for; usage can be reported by it."),
    project: str | None = typer.Option(None, help="Only for this project.  [default: the whole tenant]"),
    scopes: str | None = typer.Option(
        None, help="What it may do, such as batches:write,files:read.  [default: everything]"
    ),
    expires: str | None = typer.Option(None, help="After how long it ends, such as 90d or 12h.  [default: never]"),
    operator: bool = typer.Option(
        False,
        "--operator",
        help="For who operates this installation: in the console it shows groups, the queue, and all tenants' totals.",
    ),
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
) -> None:
    """Make a key and print it, this once."""
    from pipeline.tenancy import keys
    from pipeline.tenancy.projects import find_project
    from pipeline.tenancy.tenants import ensure_tenant

    life = None if expires is None else _duration("--expires", expires)
    with open_database(data_dir) as session:
        owner = ensure_tenant(session, tenant)
        row, key = keys.create_key(
            session,
            owner.id,
            name,
            project_id=None if project is None else find_project(session, owner.id, project).id,
            scopes=None if scopes is None else scopes.split(","),
            expires_after=life,
            is_operator=operator,
        )
    _print_key(row, key, tenant, as_json)


def rotate_key(
    key: str = typer.Argument(help="Id of the key, or the part of it between `rz_` and the next `_`."),
    grace: str = typer.Option("24h", help="How long the old key still holds, such as 7d or 1h; 0m ends it now."),
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
) -> None:
    """Make a key that takes the place of another, and print it, this once. It may do the same."""
    from pipeline.tenancy import keys
    from pipeline.tenancy.tenants import list_tenants

    with open_database(data_dir) as session:
        row, secret = keys.rotate_key(session, key, _duration("--grace", grace))
        tenant = next(one.name for one in list_tenants(session) if one.id == row.tenant_id)
    _print_key(row, secret, tenant, as_json)


def _print_key(row: ApiKey, key: str, tenant: str, as_json: bool) -> None:
    if as_json:
        shown = {"id": row.id, "tenant": tenant, "tenant_id": row.tenant_id, "name": row.name, "key": key}
        more = {
            "project_id": row.project_id,
            "scopes": row.scopes,
            "is_operator": row.is_operator,
            "expires_at": _text(row.expires_at),
        }
        typer.echo(json.dumps({**shown, **more, "rotated_from": row.rotated_from}))
        return
    typer.echo(key)
    typer.echo(f"Key {row.id} of tenant {tenant}. It can't be shown again.", err=True)
    if row.expires_at is not None:
        typer.echo(f"It ends at {_text(row.expires_at)}.", err=True)


def _duration(option: str, given: str) -> timedelta:
    matched = re.fullmatch(r"([0-9]{1,5})([mhd])", given)
    if matched is None:
        raise UserError(f"{option} is {given!r}: give minutes, hours or days, such as 30m, 12h or 90d.")
    return timedelta(**{{"m": "minutes", "h": "hours", "d": "days"}[matched[2]]: int(matched[1])})


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")


def list_keys(tenant: str | None = TENANT, data_dir: Path | None = DATA_DIR, as_json: bool = JSON) -> None:
    """List keys, without their secrets."""
    from pipeline.cli.rendering import print_table
    from pipeline.tenancy import keys
    from pipeline.tenancy.projects import list_projects
    from pipeline.tenancy.tenants import list_tenants

    with open_database(data_dir) as session:
        names = {row.id: row.name for row in list_tenants(session)}
        projects = {row.id: row.name for row in list_projects(session)}
        found = keys.list_keys(session, find_tenant_id(session, tenant))
    records = [
        {
            "id": key.id,
            "tenant": names[key.tenant_id],
            "name": key.name,
            "project": None if key.project_id is None else projects[key.project_id],
            "scopes": key.scopes,
            "is_operator": key.is_operator,
            "starts_with": f"rz_{key.short_id}_",
            "created_at": _text(key.created_at),
            "last_used_at": _text(key.last_used_at),
            "expires_at": _text(key.expires_at),
            "revoked_at": _text(key.revoked_at),
        }
        for key in found
    ]
    if as_json:
        typer.echo(json.dumps(records, indent=2))
        return
    # What is shown of all keys, and what only some have.
    some = [
        name for name in ("project", "scopes", "is_operator", "expires_at") if any(record[name] for record in records)
    ]
    headers = ["id", "tenant", "name", *some, "starts_with", "created_at", "last_used_at", "revoked_at"]
    print_table(headers, [[_cell(record[header]) for header in headers] for record in records])


def _cell(value: object) -> str:
    if value is True:
        return "yes"
    return ",".join(value) if isinstance(value, list) else str(value or "")


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
