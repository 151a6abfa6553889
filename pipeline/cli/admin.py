"""Commands of the operator, which talk to SQL: keys and rates."""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from pathlib import Path

import typer

from pipeline.cli.connecting import DATA_DIR, JSON, TENANT, find_tenant_id, open_database
from pipeline.errors import UserError


def register(app: typer.Typer) -> None:
    keys = typer.Typer(help="API keys of tenants.", no_args_is_help=True)
    keys.command("create")(create_key)
    keys.command("list")(list_keys)
    keys.command("revoke")(revoke_key)
    app.add_typer(keys, name="keys")
    rates = typer.Typer(help="Prices of models.", no_args_is_help=True)
    rates.command("set")(set_rates)
    rates.command("list")(list_rates)
    app.add_typer(rates, name="rates")


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


def set_rates(
    model: str = typer.Argument(help="Name of the model."),
    input_price: str = typer.Option(..., "--input", help="Price of 1,000,000 input tokens."),
    cached_input_price: str | None = typer.Option(
        None, "--cached-input", help="The same for tokens found in the prefix cache. (default: as --input)"
    ),
    output_price: str = typer.Option(..., "--output", help="Price of 1,000,000 output tokens."),
    batch_discount: str = typer.Option("0.5", "--discount", help="Part of the price that a batch saves, 0 to 1."),
    currency: str = typer.Option("USD", help="Code of ISO 4217."),
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
) -> None:
    """Set the prices of a model from now on; what was answered before keeps its price."""
    from pipeline.billing.rate_cards import add_rate_card

    with open_database(data_dir) as session:
        card = add_rate_card(
            session,
            model,
            currency=currency,
            input_price=_decimal("--input", input_price),
            cached_input_price=_decimal("--cached-input", cached_input_price or input_price),
            output_price=_decimal("--output", output_price),
            batch_discount=_decimal("--discount", batch_discount),
        )
    if as_json:
        since = card.effective_from and card.effective_from.isoformat()
        typer.echo(json.dumps({"id": card.id, "model": model, "effective_from": since}))
    else:
        typer.echo(f"{model}: new prices from {card.effective_from:%Y-%m-%d %H:%M:%S} UTC on.")


def list_rates(
    model: str | None = typer.Argument(None, help="Only this model. (default: all)"),
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
) -> None:
    """List cards of one model, the newest first. Prices are of 1,000,000 tokens; `rates show` shows plans."""
    from pipeline.billing.currencies import decimal_text, exact_text
    from pipeline.billing.rate_cards import list_rate_cards
    from pipeline.cli.rendering import print_table

    with open_database(data_dir) as session:
        cards = list_rate_cards(session, model)
    records = [
        {
            "model": card.model or "",
            "currency": card.currency,
            **{
                name: exact_text(price, card.currency)
                for name, price in (
                    ("input", card.input_price),
                    ("cached_input", card.cached_input_price),
                    ("output", card.output_price),
                )
                if price is not None
            },
            "batch_discount": decimal_text(card.batch_discount),
            "effective_from": card.effective_from.isoformat(timespec="seconds") if card.effective_from else "",
        }
        for card in cards
    ]
    if as_json:
        typer.echo(json.dumps(records, indent=2))
        return
    headers = ["model", "currency", "#input", "#cached_input", "#output", "#batch_discount", "effective_from"]
    print_table(headers, [[record[header.lstrip("#")] for header in headers] for record in records])


def _decimal(option: str, text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise UserError(f"{option} is {text!r}: give a decimal number, such as 0.10.") from None
