"""`ryzanstein tenants erase` and `ryzanstein tenants erasures`."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pipeline.cli.connecting import DATA_DIR, JSON, TENANT, find_tenant_id, open_database
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.tenancy.erasing import Record


def register(tenants: typer.Typer) -> None:
    tenants.command("erase")(erase)
    tenants.command("erasures")(list_some)


def erase(
    tenant: str = typer.Argument(help="Name of the tenant."),
    confirm: str = typer.Option(..., help="The name again: what is erased can't be had back."),
    cancel: bool = typer.Option(False, "--cancel", help="Cancel batches that have not ended, and wait for them."),
    wait: float = typer.Option(300.0, min=0, help="Wait for them so long, in seconds."),
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
) -> None:
    """Remove uploads, prompts, answers and names of a tenant for good, and revoke its keys.

    What a bill needs stays. Leaves and prints a signed record. Copies of the database and of the blob storage are yours
    to erase.
    """
    from pipeline.tenancy.erasing import erase_tenant
    from pipeline.tenancy.tenants import find_tenant

    with open_database(data_dir) as session:
        found = find_tenant(session, tenant)
    if confirm != found.name:
        raise UserError(f"--confirm is {confirm!r}, and the tenant is {tenant!r}: give its name again to erase it.")
    record = erase_tenant(found.id, is_cancelling=cancel, wait_seconds=wait)
    if as_json:
        typer.echo(json.dumps(_shown(record), indent=2))
        return
    erased = record.content["erased"]
    what = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in erased.items())
    typer.echo(f"{tenant} is erased: {what}.\nRecord {record.id}, signed by the key {record.content['key_id']}.")


def list_some(tenant: str | None = TENANT, data_dir: Path | None = DATA_DIR, as_json: bool = JSON) -> None:
    """List records of erasure, and whether each is what was signed. Exit code 1 if one is not."""
    from pipeline.cli.rendering import print_table
    from pipeline.tenancy.erasing import list_erasures

    with open_database(data_dir) as session:
        records = list_erasures(session, find_tenant_id(session, tenant))
    if as_json:
        typer.echo(json.dumps([_shown(record) for record in records], indent=2))
    else:
        headers = ["id", "tenant", "erased_at", "#batches", "#requests", "#files", "key_id", "signature"]
        print_table(headers, [_row(record) for record in records])
    if not all(record.is_valid for record in records):
        raise typer.Exit(1)


def _row(record: Record) -> list[str]:
    content = record.content
    numbers = [f"{content['erased'][name]:,}" for name in ("batches", "requests", "files")]
    about = [record.id, content["tenant"], content["erased_at"]]
    return [*about, *numbers, content["key_id"], "valid" if record.is_valid else "NOT VALID"]


def _shown(record: Record) -> dict[str, Any]:
    """The statement as it was signed, to the byte, and what it is checked with."""
    return {
        "id": record.id,
        "statement": record.statement,
        "signature": base64.b64encode(record.signature).decode(),
        "public_key": record.public_key,
        "is_valid": record.is_valid,
    }
