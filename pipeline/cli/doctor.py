"""`ryzanstein doctor`: what is wrong here, and what to do about it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(
    data_dir: Path | None = typer.Option(None, help="Look at the stack that runs there, instead of at the settings."),
    model: str | None = typer.Option(None, help="Look at this model folder too."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Check versions, settings, servers, storage, models and devices. Exit code 1 if something is wrong."""
    from pipeline.checks.findings import Verdict
    from pipeline.doctor import examine
    from pipeline.stack.connect import use_stack

    if data_dir is not None:
        use_stack(data_dir)
    findings = []
    for finding in examine(model):
        findings.append(finding)
        if not as_json:
            advice = f" {finding.advice}" if finding.advice else ""
            typer.echo(f"{finding.verdict.upper():8} {finding.subject}: {finding.detail.rstrip('.')}.{advice}")
    healthy = all(finding.verdict is not Verdict.FAILED for finding in findings)
    if as_json:
        typer.echo(json.dumps({"healthy": healthy, "findings": [asdict(finding) for finding in findings]}))
    if not healthy:
        raise typer.Exit(1)
