"""`ryzanstein usage` and `ryzanstein bill`: the reports of a month."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pipeline.cli import invoicing
from pipeline.cli.connecting import DATA_DIR, JSON, TENANT, find_tenant_id, open_database

if TYPE_CHECKING:
    from pipeline.billing.reports import By, Month

_MONTH = typer.Option(None, "--month", help="Month in UTC, such as 2026-11. (default: this one)")
_BY = typer.Option([], "--by", help="Split lines further, by `batch` or `key`; may be repeated.")
_CSV = typer.Option(False, "--csv", help="Print CSV.")

#: In tables for people: what the heading says already, and what is one column too many.
_HIDDEN = {"month", "kind", "currency", "tenant_id", "api_key_id"}

#: `ryzanstein usage …` and `ryzanstein bill …`: other modules add their commands to them.
usage_commands = typer.Typer(help="Usage of a month, and how it is kept.", invoke_without_command=True)
bill_commands = typer.Typer(help="Bills of a month, and all that is made of them.", invoke_without_command=True)


def register(app: typer.Typer) -> None:
    usage_commands.callback()(usage)
    app.add_typer(usage_commands, name="usage")
    bill_commands.callback()(bill)
    invoicing.register(bill_commands)
    app.add_typer(bill_commands, name="bill")


def usage(
    context: typer.Context,
    month: str | None = _MONTH,
    tenant: str | None = TENANT,
    by: list[str] = _BY,
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
    as_csv: bool = _CSV,
) -> None:
    """Tokens that were used in a month, by tenant and model."""
    if context.invoked_subcommand is not None:
        return
    from pipeline.billing.reports import usage_report
    from pipeline.cli.rendering import print_csv, print_table, usage_record

    wanted, split = _month(month), _by(by)
    with open_database(data_dir) as session:
        lines = usage_report(session, wanted, tenant_id=find_tenant_id(session, tenant), by=split)
    records = [{"month": str(wanted), **usage_record(line)} for line in lines]
    if as_json:
        typer.echo(json.dumps(records, indent=2))
    elif as_csv:
        print_csv(records)
    elif not records:
        typer.echo(f"Nothing was used in {wanted}.")
    else:
        shown = [name for name in records[0] if name not in _HIDDEN]
        headers = [f"#{name}" if isinstance(records[0][name], int) else name for name in shown]
        typer.echo(f"Usage of {wanted} (UTC)")
        print_table(headers, [[_figure(record[name]) for name in shown] for record in records])


def bill(
    context: typer.Context,
    month: str | None = _MONTH,
    tenant: str | None = TENANT,
    by: list[str] = _BY,
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
    as_csv: bool = _CSV,
) -> None:
    """What each tenant owes for a month: exact amounts, rounded once in the total."""
    if context.invoked_subcommand is not None:
        return
    from pipeline.billing.reports import bills
    from pipeline.cli.rendering import bill_record, bill_rows, print_csv, print_table

    wanted, split = _month(month), _by(by)
    with open_database(data_dir) as session:
        found = bills(session, wanted, tenant_id=find_tenant_id(session, tenant), by=split)
    if as_json:
        typer.echo(json.dumps([bill_record(each) for each in found], indent=2))
    elif as_csv:
        print_csv([row for each in found for row in bill_rows(each)])
    elif not found:
        typer.echo(f"Nothing was used in {wanted}.")
    else:
        for each in found:
            rows = bill_rows(each)
            for row in rows[len(each.lines) :]:
                row["model"] = row["kind"]
            hidden = {*_HIDDEN, "tenant", *(name for name in rows[0] if name.endswith(("_price", "_amount")))}
            shown = [name for name in rows[0] if name not in hidden]
            typer.echo(f"Bill of {each.tenant} for {each.month} (UTC), in {each.currency}")
            texts = {"model", "batch_id", "api_key"}
            headers = [name if name in texts else f"#{name}" for name in shown]
            print_table(headers, [[_figure(row[name]) for name in shown] for row in rows])


def _figure(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _month(text: str | None) -> Month:
    from datetime import UTC, datetime

    from pipeline.billing.reports import Month

    return Month.of(datetime.now(UTC)) if text is None else Month.parse(text)


def _by(names: list[str]) -> list[By]:
    from pipeline.billing.reports import By

    unknown = [name for name in names if name not in set(By)]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is not one of {', '.join(By)}.", param_hint="--by")
    return [By(name) for name in names]
