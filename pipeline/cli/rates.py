"""`ryzanstein rates …`: prices of models, and the cards of plans."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pipeline.cli.connecting import DATA_DIR, JSON, decimal_of, open_database, read_text_file

if TYPE_CHECKING:
    from pipeline.tables import Rate, RateCard

_PLAN = typer.Argument(help="Name of the plan.")
_VERSION = typer.Option(None, "--version", help="Of the plan. (default: the newest)")


def register(app: typer.Typer) -> None:
    rates = typer.Typer(help="Prices of models, and the rate cards of plans.", no_args_is_help=True)
    rates.command("set")(set_rates)
    rates.command("list")(list_rates)
    rates.command("apply")(apply_card)
    rates.command("publish")(publish_card)
    rates.command("show")(show_card)
    app.add_typer(rates, name="rates")


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
            input_price=decimal_of("--input", input_price),
            cached_input_price=decimal_of("--cached-input", cached_input_price or input_price),
            output_price=decimal_of("--output", output_price),
            batch_discount=decimal_of("--discount", batch_discount),
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


def apply_card(
    file: Path = typer.Argument(help="Rate card in YAML; `-` reads stdin."),
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
) -> None:
    """Check a rate card and keep it as a draft, the next version of its plan. Nothing is rated by it yet.

    A card names a plan, a currency, and by model the prices of input, cached_input and output: of 1,000,000 tokens,
    {graduated: [{up_to, price}, …]}, {volume: […]} or {package: {size, price}}, each with a minimum of the month if
    wanted. batch_discount, multipliers of the classes priority and flex, and effective_from may be left out.
    """
    from pipeline.billing.card_files import read_card_file
    from pipeline.billing.plans import add_draft

    card_file = read_card_file(read_text_file(file))
    with open_database(data_dir) as session:
        card = add_draft(session, card_file)
    if as_json:
        typer.echo(json.dumps({"id": card.id, "plan": card.plan, "version": card.version}))
        return
    typer.echo(
        f"Draft: version {card.version} of plan {card.plan}. "
        f"Publish it with `ryzanstein rates publish {card.plan} --version {card.version}`."
    )


def publish_card(
    plan: str = _PLAN, version: int | None = _VERSION, data_dir: Path | None = DATA_DIR, as_json: bool = JSON
) -> None:
    """Publish a draft, which then can never be changed: it holds from its effective_from on, or from now."""
    from pipeline.billing.plans import find_card, publish

    with open_database(data_dir) as session:
        card = publish(session, find_card(session, plan, version))
    if as_json:
        typer.echo(json.dumps(_record(card, []), indent=2))
    else:
        typer.echo(
            f"Version {card.version} of plan {card.plan} holds from {card.effective_from:%Y-%m-%d %H:%M:%S} UTC on."
        )


def show_card(
    plan: str | None = typer.Argument(None, help="Name of the plan. (default: list all cards)"),
    version: int | None = _VERSION,
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
) -> None:
    """Show one version of a plan with its rates, or list the versions of all plans."""
    from pipeline.billing.plans import find_card, list_cards, rates_of_card
    from pipeline.cli.rendering import print_table

    with open_database(data_dir) as session:
        if plan is None:
            records = [_record(card, []) for card in list_cards(session)]
        else:
            card = find_card(session, plan, version)
            records = [_record(card, rates_of_card(session, card))]
    if as_json:
        typer.echo(json.dumps(records if plan is None else records[0], indent=2))
        return
    headers = ["plan", "#version", "currency", "#batch_discount", "published_at", "effective_from", "sha256"]
    print_table(headers, [[str(record[name.lstrip("#")])[:19] for name in headers] for record in records])
    if plan is not None:
        headers = ["model", "meter", "pricing", "price", "#minimum"]
        print_table(headers, [[rate[name.lstrip("#")] for name in headers] for rate in records[0]["rates"]])


def _record(card: RateCard, rates: Sequence[Rate]) -> dict[str, Any]:
    from pipeline.billing.currencies import decimal_text

    return {
        "id": card.id,
        "plan": card.plan,
        "version": card.version,
        "currency": card.currency,
        "batch_discount": decimal_text(card.batch_discount),
        "multipliers": {
            "priority": decimal_text(card.priority_multiplier),
            "flex": decimal_text(card.flex_multiplier),
        },
        "published_at": card.published_at.isoformat() if card.published_at else "draft",
        "effective_from": card.effective_from.isoformat() if card.effective_from else "",
        "sha256": card.sha256.hex() if card.sha256 else "",
        "rates": [
            {
                "model": rate.model,
                "meter": rate.meter.value,
                "pricing": rate.pricing.value,
                "price": _price(rate),
                "minimum": decimal_text(rate.minimum),
            }
            for rate in rates
        ],
    }


def _price(rate: Rate) -> str:
    from pipeline.billing.currencies import decimal_text

    if rate.unit_price is not None:
        of_package = f" a package of {rate.package_size}" if rate.package_size else ""
        return decimal_text(rate.unit_price) + of_package
    return ", ".join(map(_tier, rate.tiers or ()))


def _tier(tier: Mapping[str, Any]) -> str:
    return f"{tier['price']} up to {tier['up_to']}" if tier["up_to"] is not None else f"{tier['price']} beyond"
