"""`ryzanstein audit`: whether everything that was accepted, answered and billed agrees; and what people have done."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pipeline.cli.connecting import DATA_DIR, JSON, open_database
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.jobs.audit import Audit, Finding

_AT_REST = typer.Option(False, "--at-rest", help="Nothing is under way: also look for what then must not be there.")


def register(app: typer.Typer) -> None:
    audits = typer.Typer(invoke_without_command=True)
    audits.callback(help=audit.__doc__)(_audit_alone)
    audits.command("verify")(verify_log)
    audits.command("log")(show_log)
    app.add_typer(audits, name="audit")


def _audit_alone(
    context: typer.Context, at_rest: bool = _AT_REST, data_dir: Path | None = DATA_DIR, as_json: bool = JSON
) -> None:
    if context.invoked_subcommand is None:
        audit(at_rest, data_dir, as_json)


def audit(at_rest: bool, data_dir: Path | None, as_json: bool) -> None:
    """Hold what SQL says against what is promised: each outcome once, each bill once, nothing lost.

    Reads alone, beside running processes. Exit code 1 if anything is not as it should be. `log` and `verify` are
    about the log of administrative acts.
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


def verify_log(
    head: str | None = typer.Option(None, help="SEQ:HASH, as printed before: that entry must be there as it was."),
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
) -> None:
    """Follow the chain of the log of administrative acts, and print its head.

    Note the head where nobody can change it who can write to the database. Exit code 1 if an entry was changed, added
    or removed.
    """
    from pipeline.tenancy.audit_log import verify

    seq, noted = (None, None) if head is None else _head(head)
    with open_database(data_dir) as session:
        found = verify(session, seq=seq, head=noted)
    shown = f"{found.num_entries}:{found.head.hex()}"
    if as_json:
        record = {"entries": found.num_entries, "head": shown, "faults": [asdict(fault) for fault in found.faults]}
        typer.echo(json.dumps(record))
    else:
        for fault in found.faults:
            typer.echo(f"Entry {fault.seq}: {fault.found}.")
        if not found.faults:
            typer.echo(f"{found.num_entries} entries, each as it was written. Head: {shown}")
    if found.faults:
        raise typer.Exit(1)


def show_log(
    act: str | None = typer.Option(None, help="Only this act, such as key.revoke, or acts on such things, as key."),
    about: str | None = typer.Option(None, "--object", help="Only what was done to this id."),
    limit: int = typer.Option(100, min=1, help="Most entries."),
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
) -> None:
    """List administrative acts, the last one first."""
    from pipeline.cli.rendering import print_table
    from pipeline.tenancy.audit_log import list_entries

    with open_database(data_dir) as session:
        records = [
            {
                "seq": entry.seq,
                "at": entry.at.isoformat(timespec="seconds"),
                "actor": entry.actor,
                "act": entry.act,
                "object": entry.object,
                "details": entry.details,
                "hash": entry.hash.hex(),
            }
            for entry in list_entries(session, act=act, object=about, limit=limit)
        ]
    if as_json:
        typer.echo(json.dumps(records, indent=2))
        return
    headers = ["#seq", "at", "actor", "act", "object", "details"]
    print_table(headers, [[_shown(record[header.lstrip("#")]) for header in headers] for record in records])


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={_shown(item)}" for name, item in value.items() if item is not None)
    return json.dumps(value) if isinstance(value, list) else str(value)


def _head(given: str) -> tuple[int, bytes]:
    seq, _, digest = given.partition(":")
    if re.fullmatch(r"[0-9]{1,18}", seq) is None or re.fullmatch(r"[0-9a-f]{64}", digest) is None:
        raise UserError(f"--head is {given!r}: give what `ryzanstein audit verify` printed, SEQ:HASH.")
    return int(seq), bytes.fromhex(digest)


def _result(finding: Finding) -> str:
    if finding.unchecked is not None:
        return f"not checked: {finding.unchecked}"
    return "ok" if not finding.violations else f"{len(finding.violations)} violations"
