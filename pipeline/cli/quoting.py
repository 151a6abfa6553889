"""`ryzanstein quote`: what a batch would cost, before it runs."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from pipeline.cli.connecting import API_KEY, BASE_URL, DATA_DIR, JSON, once, open_client
from pipeline.cli.input_files import first_url, readable

if TYPE_CHECKING:
    from openai import OpenAI

#: Exit code where the file can't be run.
_FAILED: Final = 3
_LOOK_SECONDS: Final = 0.5
#: After so long it says that it waits.
_PATIENT_SECONDS: Final = 20.0


def register(app: typer.Typer) -> None:
    app.command()(quote)


def quote(
    file: Path = typer.Argument(help="Input file: one request per line, as for the OpenAI Batch API."),
    endpoint: str | None = typer.Option(None, help="Endpoint of the requests. (default: the url of the first line)"),
    on_invalid: str = typer.Option("fail", help="`skip` leaves out the bad lines of a file that has some."),
    service_class: str = typer.Option("standard", "--class", help="priority, standard or flex."),
    data_dir: Path | None = DATA_DIR,
    base_url: str | None = BASE_URL,
    api_key: str | None = API_KEY,
    as_json: bool = JSON,
) -> None:
    """Upload an input file and say what it would cost, exactly and at most; nothing is run.

    `ryzanstein submit --quote ID` then starts the batch at this price. Exit code 3 if the file can't be run.
    """
    endpoint = endpoint or first_url(file)
    with open_client(data_dir, base_url, api_key) as client:
        with readable(file) as content:
            uploaded = client.files.create(file=(file.name, content), purpose="batch", extra_headers=once())
        body = {
            "input_file_id": uploaded.id,
            "endpoint": endpoint,
            "on_invalid": on_invalid,
            "service_class": service_class,
        }
        found: Any = client.post("/batches/quote", body=body, cast_to=object, options={"headers": once()})
        found = _wait_for(client, found)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _print(found)
    if found["status"] == "failed":
        raise typer.Exit(_FAILED)


def _wait_for(client: OpenAI, found: Any) -> Any:
    """The quote when it is computed, which a large file takes a while for; without control it is never."""
    silent_until: float | None = time.monotonic() + _PATIENT_SECONDS
    while found["status"] == "computing":
        if silent_until is not None and time.monotonic() > silent_until:
            silent_until = None
            note = "is still being computed. If this takes long, `ryzanstein doctor` says whether control is there."
            typer.echo(f"{found['id']} {note}", err=True)
        time.sleep(_LOOK_SECONDS)
        found = read_quote(client, found["id"])
    return found


def read_quote(client: OpenAI, quote_id: str) -> Any:
    """A quote as the gateway shows it."""
    return client.get(f"/batches/quote/{quote_id}", cast_to=object)


def _print(quote: Any) -> None:
    from pipeline.cli.client import print_errors

    typer.echo(f"{quote['id']} {quote['status']}")
    if quote["status"] == "ready":
        cost, output = quote["cost"], quote["output_tokens"]
        currency = cost["currency"]
        learned = quote["learned_from_requests"]
        basis = f"learned from {learned} finished requests" if learned else "nothing is known yet: the worst case"
        finish = quote["estimated_finish_at"]
        rows = [
            ("requests", f"{quote['num_requests']:,} of {quote['model']}, {quote['service_class']}"),
            (
                "prompt tokens",
                f"{quote['prompt_tokens']:,}, of which {quote['shared_prompt_tokens']:,} are shared beginnings",
            ),
            (
                "output tokens",
                f"{output['p50']:,} (p50), {output['p95']:,} (p95), {output['worst_case']:,} at most; {basis}",
            ),
            ("cost", f"{cost['p50']} (p50), {cost['p95']} (p95), {cost['worst_case']} {currency} at most"),
            ("price holds until", _moment(quote["expires_at"])),
            ("done, if started now", _moment(finish) if finish else "unknown: no group has been measured"),
        ]
        for name, text in rows:
            typer.echo(f"  {name + ':':22}{text}")
        typer.echo(f"Start it: ryzanstein submit --quote {quote['id']}", err=True)
    errors = (quote["errors"] or {}).get("data", [])
    if quote["status"] == "ready" and quote["num_invalid_lines"]:
        typer.echo(f"  {quote['num_invalid_lines']} invalid lines would be skipped:", err=True)
    print_errors(errors, quote["num_invalid_lines"])


def _moment(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
