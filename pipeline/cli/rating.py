"""`ryzanstein bill rate`, `bill rerate`, `bill audit` and `usage waste`: the books behind the bills."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pipeline.cli.connecting import DATA_DIR, JSON, TENANT, find_tenant_id, open_database, read_text_file
from pipeline.cli.reporting import bill_commands, usage_commands

if TYPE_CHECKING:
    from pipeline.billing.rerating import Rerating

_MONTH = typer.Option(..., "--month", help="Month in UTC, such as 2026-11.")


def register(app: typer.Typer) -> None:
    bill_commands.command("rate")(rate)
    bill_commands.command("rerate")(rerate)
    bill_commands.command("audit")(audit)
    usage_commands.command("waste")(waste)


def rate(data_dir: Path | None = DATA_DIR, as_json: bool = JSON) -> None:
    """Rate usage that nothing priced when it was recorded. Exit code 1 if some of it still has no price."""
    from pipeline.billing.late_rating import rate_unrated

    with open_database(data_dir) as session:
        done = rate_unrated(session)
    if as_json:
        typer.echo(json.dumps({"rated": done.num_rated, "left": done.left}))
    else:
        typer.echo(f"{done.num_rated} usage events were rated.")
        for model, num_events in sorted(done.left.items()):
            typer.echo(f"{num_events} of model {model} have no price: publish a rate card that has one.", err=True)
    if done.left:
        raise typer.Exit(1)


def rerate(
    month: str = _MONTH,
    card: Path | None = typer.Option(
        None, "--card", help="Rate card in YAML; `-` reads stdin. (default: each line's own card)"
    ),
    tenant: str | None = TENANT,
    publishes: bool = typer.Option(False, "--publish", help="Write it: later revisions, and adjustments."),
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
) -> None:
    """Rate a month again and show the difference per tenant and model. Nothing is written without --publish.

    With a card, lines of its plan and models are rated by it, but for batches whose price was agreed. Without one,
    every line is rated by its own card, and must come out byte for byte as it is; exit code 1 if one does not.
    """
    from pipeline.billing.card_files import read_card_file
    from pipeline.billing.reports import Month
    from pipeline.billing.rerating import rate_by_card, rate_by_own_cards

    if publishes and card is None:
        raise typer.BadParameter("there is nothing to publish without a card.", param_hint="--publish")
    wanted = Month.parse(month)
    card_file = read_card_file(read_text_file(card)) if card else None
    with open_database(data_dir) as session:
        tenant_id = find_tenant_id(session, tenant)
        if card_file is None:
            found = rate_by_own_cards(session, wanted, tenant_id=tenant_id)
        else:
            found = rate_by_card(session, wanted, card_file, tenant_id=tenant_id, publishes=publishes)
    _print_rerating(found, as_json=as_json, is_by_own=card_file is None)
    if card_file is None and found.sha256_before != found.sha256_after:
        raise typer.Exit(1)


def audit(
    month: str | None = typer.Option(None, "--month", help="Month in UTC, such as 2026-11. (default: all)"),
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
) -> None:
    """Whether engines, usage, prices, ledger and invoices agree, per tenant and month.

    Reads alone, beside running processes. Exit code 1 if anything differs, or has no price.
    """
    from pipeline.billing.currencies import decimal_text
    from pipeline.billing.reconciliation import CHECKS, reconcile
    from pipeline.billing.reports import Month
    from pipeline.cli.rendering import print_table

    wanted = None if month is None else [Month.parse(month)]
    with open_database(data_dir):  # says what to do where there is no database
        pass
    found = reconcile(months=wanted)
    drifts = [
        {
            "month": str(drift.month),
            "tenant": drift.tenant,
            "tenant_id": drift.tenant_id,
            "check": drift.check.name,
            "drift": decimal_text(drift.amount),
            "unit": drift.currency or drift.check.unit,
        }
        for drift in found.drifts
    ]
    if as_json:
        months = [str(each) for each in found.months]
        typer.echo(json.dumps({"months": months, "tenants": found.num_tenants, "drifts": drifts}, indent=2))
    else:
        failed = {drift.check for drift in found.drifts}
        print_table(
            ["check", "result"], [[check.statement, "differs" if check in failed else "ok"] for check in CHECKS]
        )
        if drifts:
            headers = ["month", "tenant", "check", "#drift", "unit"]
            print_table(headers, [[drift[header.lstrip("#")] for header in headers] for drift in drifts])
        else:
            typer.echo(f"The books of {len(found.months)} months and {found.num_tenants} tenants agree.")
    if drifts:
        raise typer.Exit(1)


def waste(
    month: str = _MONTH, tenant: str | None = TENANT, data_dir: Path | None = DATA_DIR, as_json: bool = JSON
) -> None:
    """Work that came to nothing in a month, by tenant, model and cause. It is the operator's own, and never billed."""
    from pipeline.billing.reports import Month
    from pipeline.cli.rendering import print_table
    from pipeline.jobs.waste import waste_report

    wanted = Month.parse(month)
    with open_database(data_dir) as session:
        lines = waste_report(session, wanted.start, wanted.end, tenant_id=find_tenant_id(session, tenant))
    records: list[dict[str, Any]] = [
        {
            "tenant": line.tenant,
            "model": line.model,
            "cause": line.cause.value,
            "tokens": line.num_tokens,
            "engine_ms": line.engine_ms,
        }
        for line in lines
    ]
    if as_json:
        typer.echo(json.dumps(records, indent=2))
    elif not records:
        typer.echo(f"Nothing was wasted in {wanted}.")
    else:
        headers = ["tenant", "model", "cause", "#tokens", "#engine_ms"]
        print_table(headers, [[_text(record[header.lstrip("#")]) for header in headers] for record in records])


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _print_rerating(found: Rerating, *, as_json: bool, is_by_own: bool) -> None:
    from pipeline.billing.currencies import exact_text
    from pipeline.cli.rendering import print_table

    records: list[dict[str, Any]] = [
        {
            "tenant": one.tenant,
            "model": one.model,
            "currency": one.currency,
            "lines": one.num_lines,
            "changed": one.num_changed,
            "before": exact_text(one.before, one.currency),
            "after": exact_text(one.after, one.currency),
            "difference": exact_text(one.change, one.currency),
        }
        for one in found.differences
    ]
    if as_json:
        published = found.card and {"plan": found.card.plan, "version": found.card.version}
        digests = {"sha256_before": found.sha256_before, "sha256_after": found.sha256_after}
        whole = {"month": str(found.month), "differences": records, "published": published, **digests}
        typer.echo(json.dumps(whole, indent=2))
        return
    headers = ["tenant", "model", "currency", "#lines", "#changed", "#before", "#after", "#difference"]
    print_table(headers, [[_text(record[header.lstrip("#")]) for header in headers] for record in records])
    if is_by_own:
        same = found.sha256_before == found.sha256_after
        typer.echo(
            f"SHA-256 of the lines: {found.sha256_before}" + ("" if same else f", rated again {found.sha256_after}")
        )
    elif found.card is None:
        typer.echo("Nothing was written. --publish writes it.")
    else:
        typer.echo(f"Published as version {found.card.version} of plan {found.card.plan}.")
