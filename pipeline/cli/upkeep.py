"""`ryzanstein usage rebuild-rollups`: the upkeep of what reports read."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from pipeline.cli.connecting import DATA_DIR, JSON, TENANT, find_tenant_id, open_database
from pipeline.cli.reporting import usage_commands


def register(app: typer.Typer) -> None:
    usage_commands.command("rebuild-rollups")(rebuild_rollups)


def rebuild_rollups(tenant: str | None = TENANT, data_dir: Path | None = DATA_DIR, as_json: bool = JSON) -> None:
    """Have the roll-ups by hour and day say again what the usage events say. Groups may go on meanwhile."""
    from pipeline.billing.rollups import rebuild

    with open_database(data_dir) as session:
        tenant_id = find_tenant_id(session, tenant)
    done = rebuild(tenant_id=tenant_id)
    if as_json:
        typer.echo(json.dumps({"months": done.num_months, "corrected": done.num_corrected}))
    elif done.num_corrected:
        typer.echo(f"{done.num_corrected} roll-ups were wrong, and are right now, of {done.num_months} months in all.")
    else:
        typer.echo(f"All roll-ups of {done.num_months} months, counted by tenant, were right.")
