"""`ryzanstein …`: thin commands over plain functions.

Exit codes: 0 done; 1 it failed, or something is wrong (the message says what to do); 2 wrong usage; 3 what was asked
about is not there or did not end well (`status`: no stack runs; a batch that did not complete); 130 interrupted.
"""

from __future__ import annotations

import signal
import sys
from importlib.metadata import version

import typer

from pipeline.cli import (
    admin,
    auditing,
    batches,
    budgets,
    client,
    compliance,
    contracts,
    doctor,
    groups,
    quoting,
    rates,
    rating,
    reporting,
    server,
    sharing,
    stack,
    top,
    upkeep,
    verifying,
    webhooks,
)
from pipeline.errors import UserError
from pipeline.settings import get_settings

app = typer.Typer(
    name="ryzanstein",
    help="Batch generation on GPUs you own.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ryzanstein {version('ryzanstein')}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    show_version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Batch generation on GPUs you own."""
    if context.invoked_subcommand != "doctor":  # which reports wrong settings beside all else
        get_settings()


# In the order of `--help`; what a command needs is imported when it runs.
for _commands in (
    stack,
    groups,
    top,
    client,
    batches,
    webhooks,
    quoting,
    sharing,
    admin,
    rates,
    contracts,
    budgets,
    reporting,
    rating,
    upkeep,
    verifying,
    auditing,
    compliance,
    server,
    doctor,
):
    _commands.register(app)


def main() -> None:
    """Run a command; a mistake of the user's is one line on stderr, never a traceback."""
    # A shell starts its background jobs with this one ignored; what is interrupted ends all the same.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        app()
    except UserError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
