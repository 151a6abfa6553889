"""`ryzanstein top`: groups, queues and tenants at this moment, again and again."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pipeline.cli.connecting import DATA_DIR, JSON, open_database
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.cli.top_screen import Snapshot


#: A pipe has no width: nothing is left out.
_PIPE_WIDTH = 200


def register(app: typer.Typer) -> None:
    app.command()(top)


def top(
    interval: float = typer.Option(2.0, min=0.2, max=3600, help="Seconds between two looks."),
    once: bool = typer.Option(False, "--once", help="Look once and end; so it does where stdout is no terminal."),
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
) -> None:
    """Show groups, queues and tenants, as `top` shows processes. Ctrl-C ends it."""
    from pipeline.cli.top_screen import record_of, screen

    if as_json:
        typer.echo(json.dumps(record_of(_look(data_dir)), indent=2))
        return
    from rich.console import Console

    console = Console()
    if once or not sys.stdout.isatty():
        if not sys.stdout.isatty():
            console = Console(width=_PIPE_WIDTH)
        console.print(screen(_look(data_dir), console.width))
        return
    from rich.console import Group, RenderableType
    from rich.live import Live
    from rich.text import Text

    seen: RenderableType = ""
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            try:
                seen = shown = screen(_look(data_dir), console.width)
            except UserError as error:  # the database is away for a while, say: what was seen last stays
                shown = Group(Text(f"{error} It is asked again in {interval:g} s.", style="red"), Text(), seen)
            live.update(shown, refresh=True)
            time.sleep(interval)


def _look(data_dir: Path | None) -> Snapshot:
    from pipeline.cli.top_screen import take_snapshot
    from pipeline.jobs.queue_views import with_tickets

    with open_database(data_dir) as session:
        snapshot = take_snapshot(session)
    return replace(snapshot, queues=with_tickets(snapshot.queues))
