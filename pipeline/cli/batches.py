"""`ryzanstein batches`: the list of a client's batches, and what can be done with one that is there."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

import typer

from pipeline.cli.client import print_batch
from pipeline.cli.connecting import API_KEY, BASE_URL, DATA_DIR, JSON, once, open_client

_BATCH = typer.Argument(help="Id of a batch.")


def register(app: typer.Typer) -> None:
    batches = typer.Typer(help="List batches, the newest first; pause, resume or retry one.")
    batches.callback(invoke_without_command=True)(list_batches)
    for command in (pause, resume, retry):
        batches.command()(command)
    app.add_typer(batches, name="batches")


def list_batches(
    context: typer.Context,
    limit: int = typer.Option(20, min=1, max=100, help="How many."),
    data_dir: Path | None = DATA_DIR,
    base_url: str | None = BASE_URL,
    api_key: str | None = API_KEY,
    as_json: bool = JSON,
) -> None:
    """List batches, the newest first; pause, resume or retry one."""
    if context.invoked_subcommand is not None:
        return
    with open_client(data_dir, base_url, api_key) as client:
        found = client.batches.list(limit=limit).data
    if as_json:
        typer.echo(json.dumps([batch.model_dump(mode="json") for batch in found], indent=2))
        return
    from pipeline.cli.rendering import print_table
    from pipeline.cli.watching import status_of

    rows = [
        [batch.id, status_of(batch), batch.model or "", str(counts.total), str(counts.completed), str(counts.failed)]
        for batch in found
        if (counts := batch.request_counts) is not None
    ]
    print_table(["batch", "status", "model", "#requests", "#completed", "#failed"], rows)


def pause(
    batch: str = _BATCH,
    reason: str | None = typer.Option(None, help="Why, for whoever looks at the batch."),
    data_dir: Path | None = DATA_DIR,
    base_url: str | None = BASE_URL,
    api_key: str | None = API_KEY,
    as_json: bool = JSON,
) -> None:
    """Begin no more of a batch until it is resumed; what runs goes on to its end. Its window stands still."""
    _act(batch, "pause", {} if reason is None else {"reason": reason}, data_dir, base_url, api_key, as_json)


def resume(
    batch: str = _BATCH,
    data_dir: Path | None = DATA_DIR,
    base_url: str | None = BASE_URL,
    api_key: str | None = API_KEY,
    as_json: bool = JSON,
) -> None:
    """Let a paused batch go on."""
    _act(batch, "resume", None, data_dir, base_url, api_key, as_json)


def retry(
    batch: str = _BATCH,
    data_dir: Path | None = DATA_DIR,
    base_url: str | None = BASE_URL,
    api_key: str | None = API_KEY,
    as_json: bool = JSON,
) -> None:
    """Start a new batch of what failed, was cancelled or expired in one that has ended."""
    _act(batch, "retry", None, data_dir, base_url, api_key, as_json)


def _act(
    batch: str,
    action: str,
    body: dict[str, str] | None,
    data_dir: Path | None,
    base_url: str | None,
    api_key: str | None,
    as_json: bool,
) -> None:
    from openai.types import Batch

    with open_client(data_dir, base_url, api_key) as client:
        acted = client.post(
            f"/batches/{quote(batch, safe='')}/{action}", cast_to=Batch, body=body, options={"headers": once()}
        )
    print_batch(acted, as_json)
