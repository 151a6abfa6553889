"""Why a batch waits, and what share each tenant has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pipeline.cli.connecting import API_KEY, BASE_URL, DATA_DIR, JSON, decimal_of, open_client, open_database

if TYPE_CHECKING:
    from pipeline.schemas.explanations import BatchExplanation


def register(app: typer.Typer) -> None:
    app.command()(explain)
    shares = typer.Typer(help="Shares of tenants in what groups do.", no_args_is_help=True)
    shares.command("set")(set_share)
    shares.command("list")(list_shares)
    app.add_typer(shares, name="shares")


def explain(
    batch: str = typer.Argument(help="Id of a batch."),
    data_dir: Path | None = DATA_DIR,
    base_url: str | None = BASE_URL,
    api_key: str | None = API_KEY,
    as_json: bool = JSON,
) -> None:
    """Say why a batch waits, what is ahead of it, and when it would be done."""
    from pipeline.schemas.explanations import BatchExplanation

    with open_client(data_dir, base_url, api_key) as client:
        found = BatchExplanation.model_validate(client.get(f"/batches/{batch}/explain", cast_to=object))
    if as_json:
        typer.echo(found.model_dump_json())
        return
    typer.echo(f"{found.batch_id} {found.status} ({found.service_class}), {found.model or 'model not known yet'}")
    for reason in found.reasons:
        typer.echo(f"  {reason.message} ({reason.code})")
    for name, value in _rows(found):
        typer.echo(f"{name + ':':<16} {value}")


def _rows(found: BatchExplanation) -> list[tuple[str, str]]:
    slices = found.slices
    rows = [("slices", f"{slices.pending} pending, {slices.at_work} at work, {slices.done} done")]
    if found.ahead is not None:
        ahead = found.ahead
        rows.append(
            (
                "slices ahead",
                f"{ahead.slices_by_class} by class, {ahead.slices_by_share} by share, {ahead.slices_of_own} own",
            )
        )
    if found.groups is not None:
        groups = found.groups
        rows.append(("groups", f"{groups.ready} ready, {groups.starting} starting, {groups.away} away"))
    if found.shares is not None:
        own = found.shares.own
        rows.append(
            ("share", f"counter {own.counter} above the lowest, weight {own.weight}, beside {found.shares.num_others}")
        )
    if found.rates is not None:
        rows.append(
            ("recent speed", f"{found.rates.recent_tokens_per_second:g} tokens/s in {found.rates.recent_seconds} s")
        )
    rows.append(("starts", _moment(found.estimated_start)))
    rows.append(("ends", _moment(found.estimated_finish)))
    rows += [(f"as {kind}", _moment(moment)) for kind, moment in found.estimated_finish_in_class.items() if moment]
    return rows


def _moment(seconds: int | None) -> str:
    from datetime import UTC, datetime

    return "not known" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def set_share(
    tenant: str = typer.Argument(help="Name of the tenant."),
    weight: str = typer.Argument(help="Its share against those of the others; all have 1 that were given none."),
    data_dir: Path | None = DATA_DIR,
) -> None:
    """Set what share a tenant gets where others wait too."""
    from pipeline.jobs.fairness import set_weight
    from pipeline.tenancy.tenants import find_tenant

    number = decimal_of("WEIGHT", weight)
    with open_database(data_dir) as session:
        set_weight(session, find_tenant(session, tenant).id, number)
    typer.echo(f"{tenant}: weight {number.normalize():f} from now on.")


def list_shares(data_dir: Path | None = DATA_DIR, as_json: bool = JSON) -> None:
    """List tenants with their weights, and their counters by model and service class."""
    from pipeline.cli.rendering import print_table
    from pipeline.jobs.fairness import list_shares

    with open_database(data_dir) as session:
        records = [
            {
                "tenant": share.tenant,
                "weight": f"{share.weight.normalize():f}",
                "model": share.model,
                "service_class": share.service_class,
                "served": None if share.served is None else round(share.served),
            }
            for share in list_shares(session)
        ]
    if as_json:
        typer.echo(json.dumps(records, indent=2))
        return
    headers = ["tenant", "#weight", "model", "service_class", "#served"]
    names = [header.lstrip("#") for header in headers]
    print_table(headers, [[str("" if record[name] is None else record[name]) for name in names] for record in records])
