"""`ryzanstein limits …`: how fast tenants may call, and how much they may have enqueued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from pipeline.cli.connecting import DATA_DIR, JSON, TENANT, find_key_id, find_tenant_id, open_database
from pipeline.errors import UserError

#: What stands for no limit of the tenant's own.
_DEFAULT = "default"
_NUMBER = "A number; 0 is no limit, and `default` what the settings say."


def register(app: typer.Typer) -> None:
    limits = typer.Typer(help="Limits of tenants and keys that differ from the settings.", no_args_is_help=True)
    limits.command("set")(set_limits)
    limits.command("list")(list_some)
    app.add_typer(limits, name="limits")


def set_limits(
    tenant: str = typer.Argument(help="Name of the tenant."),
    requests_per_minute: str | None = typer.Option(None, help=f"Calls in a minute. {_NUMBER}"),
    tokens_per_minute: str | None = typer.Option(None, help=f"Tokens submitted in a minute. {_NUMBER}"),
    enqueued_tokens: str | None = typer.Option(
        None, help=f"Prompt tokens without an outcome, of each model. {_NUMBER}"
    ),
    enqueued_batches: str | None = typer.Option(None, help=f"Batches that have not ended. {_NUMBER}"),
    key: str | None = typer.Option(None, help="Id of a key: the limits in a minute are of it alone."),
    model: str | None = typer.Option(None, help="Name of a model: the limits of what is enqueued are of it alone."),
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
) -> None:
    """Set limits of a tenant; those that are not given stay."""
    from pipeline.tenancy import limits
    from pipeline.tenancy.tenants import find_tenant

    rates = _given({"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute})
    queues = _given({"enqueued_tokens": enqueued_tokens, "enqueued_batches": enqueued_batches})
    if (key and queues) or (model and rates) or not (rates or queues):
        raise UserError(
            "Give at least one limit; --key goes with --requests-per-minute and --tokens-per-minute, and --model with "
            "--enqueued-tokens and --enqueued-batches."
        )
    with open_database(data_dir) as session:
        owner = find_tenant(session, tenant)
        key_id = None if key is None else find_key_id(session, owner, key)
        if rates:
            limits.set_rate_limits(session, owner.id, rates, api_key_id=key_id)
        if queues:
            limits.set_queue_limits(session, owner.id, queues, model=model)
    typer.echo(json.dumps({"tenant": tenant, **rates, **queues}) if as_json else f"Limits of {tenant} are set.")


def list_some(tenant: str | None = TENANT, data_dir: Path | None = DATA_DIR, as_json: bool = JSON) -> None:
    """List limits that were set; for all else the settings hold."""
    from pipeline.cli.rendering import print_table
    from pipeline.tenancy.limits import QUEUES, RATES, list_limits
    from pipeline.tenancy.tenants import list_tenants

    with open_database(data_dir) as session:
        names = {row.id: row.name for row in list_tenants(session)}
        rates, queues = list_limits(session, find_tenant_id(session, tenant))
    records: list[dict[str, Any]] = [
        {
            "tenant": names[row.tenant_id],
            "of": row.api_key_id or "tenant",
            **{name: getattr(row, name) for name in RATES},
        }
        for row in rates
    ]
    records += [
        {"tenant": names[row.tenant_id], "of": row.model or "tenant", **{name: getattr(row, name) for name in QUEUES}}
        for row in queues
    ]
    if as_json:
        typer.echo(json.dumps(records, indent=2))
        return
    headers = ["tenant", "of", *(f"#{name}" for name in (*RATES, *QUEUES))]
    rows = [[_shown(record.get(header.lstrip("#"))) for header in headers] for record in records]
    print_table(headers, rows)


def _given(options: dict[str, str | None]) -> dict[str, int | None]:
    return {name: _number(name, text) for name, text in options.items() if text is not None}


def _number(name: str, text: str) -> int | None:
    if text == _DEFAULT:
        return None
    if not text.isascii() or not text.isdigit():
        raise UserError(f"--{name.replace('_', '-')} is {text!r}: give a number from 0 on, or `{_DEFAULT}`.")
    return int(text)


def _shown(value: object) -> str:
    match value:
        case None:
            return ""
        case 0:
            return "no limit"
        case int():
            return f"{value:,}"
    return str(value)
