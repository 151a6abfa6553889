"""`ryzanstein usage rebuild-rollups` and `ryzanstein retention run`: the upkeep of what is kept of requests."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from pipeline.cli.connecting import DATA_DIR, JSON, TENANT, find_tenant_id, open_database
from pipeline.cli.reporting import usage_commands
from pipeline.errors import UserError


def register(app: typer.Typer) -> None:
    usage_commands.command("rebuild-rollups")(rebuild_rollups)
    retention = typer.Typer(help="How long requests and answers are kept.", no_args_is_help=True)
    retention.command("run")(run_retention)
    app.add_typer(retention, name="retention")


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


def run_retention(
    dry_run: bool = typer.Option(False, "--dry-run", help="Only say what would be dropped."),
    months: int | None = typer.Option(
        None, min=1, help="Full months to keep, before this one. (default: setting RETENTION_MONTHS)"
    ),
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
) -> None:
    """Drop the requests, answers and usage events of months that are no longer kept. Bills and roll-ups stay."""
    from pipeline.cli.rendering import print_table
    from pipeline.jobs.retention import drop_old_months, old_months
    from pipeline.settings import get_settings

    with open_database(data_dir):  # says what to do where there is no database
        pass
    if months is None and get_settings().retention_months is None:
        raise UserError("All months are kept. Give --months, or set RYZANSTEIN_RETENTION_MONTHS.")
    found = old_months(months=months) if dry_run else drop_old_months(months=months)
    done = "to be dropped" if dry_run else "dropped"
    records = [
        {
            "month": month.name.replace("_", "-"),
            "requests": month.num_requests,
            "result": f"kept: {month.kept_because}" if month.kept_because else done,
        }
        for month in found
    ]
    if as_json:
        typer.echo(json.dumps(records, indent=2))
    elif not records:
        typer.echo("No month is older than what is to be kept.")
    else:
        rows = [[str(record["month"]), str(record["requests"]), str(record["result"])] for record in records]
        print_table(["month", "#requests", "result"], rows)
