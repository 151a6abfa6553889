"""`ryzanstein drain` and `ryzanstein resume`: a group that is to hold nothing for a while."""

from __future__ import annotations

import time
from pathlib import Path

import typer

from pipeline.cli.connecting import DATA_DIR, open_database
from pipeline.errors import UserError

_NAME = typer.Argument(help="The group: `group-0`, or with its host where several are called so.")
_WAIT = typer.Option(True, "--wait/--no-wait", help="Return when the group holds nothing.")
_LOOK_SECONDS = 0.25


def register(app: typer.Typer) -> None:
    app.command()(drain)
    app.command()(resume)


def drain(group: str = _NAME, wait: bool = _WAIT, data_dir: Path | None = DATA_DIR) -> None:
    """Let a group finish or return what it holds, and take nothing more until `resume`.

    What it returns goes on elsewhere from where it was. The process stays, with its model loaded.
    """
    from pipeline.fleet import state_of, want_drain
    from pipeline.settings import get_settings
    from pipeline.tables import GroupState

    with open_database(data_dir) as session:
        group_id = want_drain(session, group, is_wanted=True)
    if not wait:
        typer.echo(f"{group_id} drains.")
        return
    settings = get_settings()
    longest = settings.drain_seconds + 2 * settings.lease_seconds
    deadline = time.monotonic() + longest
    while True:
        with open_database(data_dir) as session:
            state = state_of(session, group_id)
        if state in (GroupState.DRAINED, GroupState.STOPPED):
            typer.echo(f"{group_id} is {state.value}: it holds nothing. `ryzanstein resume {group}` lets it go on.")
            return
        if time.monotonic() > deadline:
            raise UserError(
                f"{group_id} is {state.value} after {longest:g} s. It heeds the request when it is heard of again; "
                "`ryzanstein status` and its log say how it is."
            )
        time.sleep(_LOOK_SECONDS)


def resume(group: str = _NAME, data_dir: Path | None = DATA_DIR) -> None:
    """Let a group that was drained take slices again."""
    from pipeline.fleet import want_drain

    with open_database(data_dir) as session:
        group_id = want_drain(session, group, is_wanted=False)
    typer.echo(f"{group_id} takes slices again.")
