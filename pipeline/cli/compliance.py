"""`ryzanstein compliance report`: what is done about security, which clauses that serves, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from pipeline.cli.connecting import DATA_DIR, JSON
from pipeline.errors import UserError


def register(app: typer.Typer) -> None:
    compliance = typer.Typer(help="Security controls, and evidence of them.", no_args_is_help=True)
    compliance.callback()(_compliance)
    compliance.command()(report)
    app.add_typer(compliance, name="compliance")


def _compliance() -> None:
    """Security controls, and evidence of them."""


def report(
    output: Path | None = typer.Option(None, "--output", help="Write it there.  [default: standard output]"),
    hashes: bool = typer.Option(True, help="Take the SHA-256 of model files, which reads all of them."),
    data_dir: Path | None = DATA_DIR,
    as_json: bool = JSON,
) -> None:
    """Write what SOC 2, GDPR and HIPAA ask for, what is seen of it here, and every gap.

    Reads alone, beside running processes. It is a report and no gate: exit code 0 whatever it says.
    """
    from datetime import UTC, datetime
    from importlib.metadata import version

    from pipeline.compliance.evidence import Inspection
    from pipeline.compliance.markdown import report_page
    from pipeline.compliance.report import make_report
    from pipeline.settings import get_settings
    from pipeline.stack.connect import use_stack
    from pipeline.tables.session import get_engine

    if data_dir is not None:
        use_stack(data_dir)
    inspection = Inspection(settings=get_settings(), engine=get_engine(), hashes_models=hashes)
    made = make_report(inspection, now=datetime.now(UTC), version=version("ryzanstein"))
    page = json.dumps(made.as_object(), indent=2) + "\n" if as_json else report_page(made)
    if output is None:
        typer.echo(page, nl=False)
        typer.echo(made.summary, err=True)
        return
    try:
        output.write_text(page)
    except OSError as error:
        raise UserError(f"Can't write {output}: {error.strerror}.") from None
    typer.echo(f"{output}: {made.summary}")
