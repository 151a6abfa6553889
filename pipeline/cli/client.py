"""Commands that use the service as a client does, through the stock `openai` package."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pipeline.cli.connecting import API_KEY, BASE_URL, DATA_DIR, JSON, once, open_client
from pipeline.cli.input_files import first_url, readable
from pipeline.cli.quoting import read_quote
from pipeline.errors import UserError

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import Batch

#: Exit code where a batch has ended in another way than completed.
NOT_COMPLETED = 3

#: Errors of a failed batch that are printed; --json prints all of them.
_SHOWN_ERRORS = 10


def register(app: typer.Typer) -> None:
    for command in (submit, watch, download, cancel):
        app.command()(command)


def submit(
    file: Path | None = typer.Argument(
        None, help="Input file: one request per line, as for the OpenAI Batch API. With --quote, that of the quote."
    ),
    wait: bool = typer.Option(False, "--wait", help="Wait for the end; exit code 3 if it is not `completed`."),
    endpoint: str | None = typer.Option(None, help="Endpoint of the requests. (default: the url of the first line)"),
    on_invalid: str | None = typer.Option(None, help="`skip` runs the good lines of a file that has bad ones."),
    window: str = typer.Option("24h", help="Completion window: 24h, or others from 15m to 7d."),
    service_class: str | None = typer.Option(
        None, "--class", help="How soon it is wanted: priority, standard or flex. (default: standard)"
    ),
    quote: str | None = typer.Option(None, help="Id of a quote, whose file and price it then has."),
    max_cost: str | None = typer.Option(None, help="Amount at which it pauses, in the currency of its prices."),
    receipts: bool | None = typer.Option(
        None, "--receipts/--no-receipts", help="Whether its output carries signed receipts. (default: the operator's)"
    ),
    metadata: list[str] = typer.Option([], help="KEY=VALUE to keep with the batch; may be repeated."),
    data_dir: Path | None = DATA_DIR,
    base_url: str | None = BASE_URL,
    api_key: str | None = API_KEY,
    as_json: bool = JSON,
) -> None:
    """Upload an input file and start a batch."""
    pairs = dict(_pair(text) for text in metadata)
    if (file is None) == (quote is None):
        raise typer.BadParameter("Give an input file, or --quote with the id of a quote.", param_hint="FILE")
    extensions: dict[str, str | bool | None] = {
        "on_invalid": on_invalid,
        "service_class": service_class,
        "quote_id": quote,
        "max_cost": max_cost,
        "receipts": receipts,
    }
    endpoint = endpoint or (first_url(file) if file else None)
    with open_client(data_dir, base_url, api_key) as client:
        if file is not None:
            with readable(file) as content:
                file_id = client.files.create(file=(file.name, content), purpose="batch", extra_headers=once()).id
        else:
            quoted = read_quote(client, quote or "")
            file_id, endpoint = quoted["input_file_id"], endpoint or quoted["endpoint"]
            for name in ("on_invalid", "service_class"):
                extensions[name] = extensions[name] or quoted[name]
        batch = client.batches.create(
            input_file_id=file_id,
            endpoint=endpoint,  # type: ignore[arg-type]
            completion_window=window,  # type: ignore[arg-type]
            metadata=pairs or None,
            extra_headers=once(),
            extra_body={name: value for name, value in extensions.items() if value not in (None, "")} or None,
        )
        if wait:
            _wait(client, [batch], as_json)
            return
    print_batch(batch, as_json)


def watch(
    batches: list[str] = typer.Argument(None, help="Ids of batches. (default: all that have not ended)"),
    data_dir: Path | None = DATA_DIR,
    base_url: str | None = BASE_URL,
    api_key: str | None = API_KEY,
    as_json: bool = JSON,
) -> None:
    """Watch batches until they have ended; exit code 3 if one of them is not `completed`."""
    with open_client(data_dir, base_url, api_key) as client:
        _wait(client, _batches_to_watch(client, batches or []), as_json, is_quiet=as_json)


def _batches_to_watch(client: OpenAI, ids: Sequence[str]) -> list[Batch]:
    from pipeline.cli.watching import ENDED

    if ids:
        return [client.batches.retrieve(batch_id) for batch_id in dict.fromkeys(ids)]
    open_ones = [batch for batch in client.batches.list(limit=100).data if batch.status not in ENDED]
    if not open_ones:
        raise UserError("None of your last 100 batches is open. Give the ids of those that you want to see.")
    return open_ones[::-1]


def download(
    batch: str = typer.Argument(help="Id of a batch."),
    output: Path | None = typer.Option(None, help="Where to write the output file. (default: BATCH_output.jsonl)"),
    errors: Path | None = typer.Option(None, help="Where to write the error file. (default: BATCH_errors.jsonl)"),
    data_dir: Path | None = DATA_DIR,
    base_url: str | None = BASE_URL,
    api_key: str | None = API_KEY,
    as_json: bool = JSON,
) -> None:
    """Write the output and error files of a batch; of one that still runs, the lines that are there."""
    from pipeline.cli.watching import ENDED

    with open_client(data_dir, base_url, api_key) as client:
        found = client.batches.retrieve(batch)
        written = {
            "output": _download(client, found.output_file_id, output or Path(f"{batch}_output.jsonl")),
            "errors": _download(client, found.error_file_id, errors or Path(f"{batch}_errors.jsonl")),
        }
    if as_json:
        typer.echo(json.dumps({"batch": found.id, "status": found.status, **written}))
        return
    for name, path in written.items():
        typer.echo(f"{name}: {path or 'none'}")
    if found.status not in ENDED:
        typer.echo(f"The batch is {found.status}: more lines may come.", err=True)


def cancel(
    batch: str = typer.Argument(help="Id of a batch."),
    data_dir: Path | None = DATA_DIR,
    base_url: str | None = BASE_URL,
    api_key: str | None = API_KEY,
    as_json: bool = JSON,
) -> None:
    """Stop a batch; what is finished is kept."""
    with open_client(data_dir, base_url, api_key) as client:
        cancelled = client.batches.cancel(batch)
    print_batch(cancelled, as_json)


def _wait(client: OpenAI, batches: Sequence[Batch], as_json: bool, *, is_quiet: bool = True) -> None:
    """`is_quiet`: says nothing on the way where nobody sits at a terminal."""
    from pipeline.cli.watching import Display, PlainLines, Silence, watch_until_end

    display: Display = Silence() if is_quiet else PlainLines(lambda line: typer.echo(line, err=True))
    if sys.stderr.isatty():
        from pipeline.cli.bars import Bars

        display = Bars()
    ended = watch_until_end(client, batches, display)
    for batch in ended:
        print_batch(batch, as_json)
    if any(batch.status != "completed" for batch in ended):
        raise typer.Exit(NOT_COMPLETED)


def print_batch(batch: Batch, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(batch.model_dump(mode="json")))
        return
    counts = batch.request_counts
    line = f"{batch.id} {batch.status}"
    if counts is not None and counts.total:
        line += f" ({counts.total} requests, {counts.completed} completed, {counts.failed} failed)"
    typer.echo(line)
    if reason := getattr(batch, "pause_reason", None):
        typer.echo(f"  {_pause_text(batch.id, reason, getattr(batch, 'pause_note', None))}", err=True)
    found = (batch.errors.data if batch.errors else None) or []
    print_errors([error.model_dump() for error in found[:_SHOWN_ERRORS]], len(found))


def _pause_text(batch_id: str, reason: str, note: str | None) -> str:
    from pipeline.tables.batches import PAUSED_BY_CLIENT

    if reason != PAUSED_BY_CLIENT:
        return f"It is paused: the budget {reason} has no room. What it has is kept, and it goes on by itself."
    why = f" ({note})" if note else ""
    return f"It is paused by its client{why}. It goes on with `ryzanstein batches resume {batch_id}`."


def print_errors(errors: Sequence[Mapping[str, Any]], count: int) -> None:
    """The first of so many errors of a file."""
    for error in errors[:_SHOWN_ERRORS]:
        where = f"line {error['line']}: " if error["line"] else ""
        typer.echo(f"  {where}{error['message']} ({error['code']})", err=True)
    if count > _SHOWN_ERRORS:
        typer.echo(f"  and {count - _SHOWN_ERRORS} more; --json shows all", err=True)


def _download(client: OpenAI, file_id: str | None, path: Path) -> str | None:
    """Write a file under a temporary name first, so that a download that breaks leaves no half file."""
    if file_id is None:
        return None
    partial = path.with_name(path.name + ".part")
    try:
        with client.files.with_streaming_response.content(file_id) as response:
            response.stream_to_file(partial)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"Can't write {path}: {error.strerror}.") from None
    finally:
        partial.unlink(missing_ok=True)
    return str(path)


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise typer.BadParameter(f"{text!r} is not KEY=VALUE.", param_hint="--metadata")
    return key, value
