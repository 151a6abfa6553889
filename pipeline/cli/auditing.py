"""`ryzanstein audit`: whether everything that was accepted, answered and billed agrees."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pipeline.cli.connecting import DATA_DIR, JSON, open_database

if TYPE_CHECKING:
    from pipeline.jobs.audit import Audit, Finding

_AT_REST = typer.Option(False, "--at-rest", help="Nothing is under way: also look for what then must not be there.")


def register(app: typer.Typer) -> None:
    app.command()(audit)


def audit(at_rest: bool = _AT_REST, data_dir: Path | None = DATA_DIR, as_json: bool = JSON) -> None:
    """Hold what SQL says against what is promised: each outcome once, each bill once, nothing lost.

    Reads alone, beside running processes. Exit code 1 if anything is not as it should be.
    """
    from pipeline.jobs import audit as auditing

    with open_database(data_dir):  # says what to do where there is no database
        pass
    found = auditing.audit(at_rest=at_rest)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in found.findings]))
    else:
        _print(found)
    if found.violations:
        raise typer.Exit(1)


def _print(found: Audit) -> None:
    from pipeline.cli.rendering import print_table

    print_table(
        ["invariant", "result"],
        [[finding.invariant, _result(finding)] for finding in found.findings],
    )
    if not found.violations:
        typer.echo("Everything that was looked at agrees.")
        return
    print_table(["subject", "found"], [[one.subject, one.found] for _, one in found.violations])
    typer.echo(
        "These rows do not agree. Stop the groups (`ryzanstein down`), keep a copy of the database, and report it: no "
        "fault of a process or a machine may lead here.",
        err=True,
    )


def _result(finding: Finding) -> str:
    if finding.unchecked is not None:
        return f"not checked: {finding.unchecked}"
    return "ok" if not finding.violations else f"{len(finding.violations)} violations"
