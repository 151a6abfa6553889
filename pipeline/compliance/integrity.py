"""That what is stored is right, durable, and made by the models that are meant."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from pipeline.checks.findings import Verdict
from pipeline.checks.postgres import check_postgres
from pipeline.compliance.evidence import Evidence, Inspection, gap, met, unknown
from pipeline.jobs.audit import audit
from pipeline.tables import ServedModel
from pipeline.tables.migrating import describe_lack, revisions
from pipeline.tenancy.audit_log import verify

#: Files of a kind that can hold code, which other tools run when they load it. Nothing here ever opens one.
_PICKLES: Final = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
#: Code that comes with some models, and is never run here.
_CODE: Final = frozenset({".py", ".so"})
#: Whose sums say which model it is.
_MODEL_FILES: Final = ("*.safetensors", "*.json", "*.jinja")
_MOST_NAMED: Final = 10


def check_audit(inspection: Inspection) -> Iterator[Evidence]:
    """The audit of everything that was accepted, answered and billed."""
    findings = audit(inspection.engine).findings
    if held := sum(finding.holds for finding in findings):
        yield met(f"{held} invariants of results, usage, prices and ledger hold (`ryzanstein audit`)")
    for finding in findings:
        if finding.unchecked is not None:
            yield unknown(f"{finding.invariant}: {finding.unchecked}")
        for violation in finding.violations[:_MOST_NAMED]:
            advice = "Run `ryzanstein audit`, and do what it says."
            yield gap(f"{finding.invariant}; {violation.subject}: {violation.found}", advice)


def check_acts(inspection: Inspection) -> Iterator[Evidence]:
    """The chain of the log of administrative acts."""
    with Session(inspection.engine) as session:
        found = verify(session)
    for fault in found.faults[:_MOST_NAMED]:
        yield gap(f"administrative act {fault.seq}: {fault.found}", "Find out who changed the log; restore a copy.")
    if not found.faults:
        yield met(
            f"{found.num_entries} administrative acts are logged in a chain that is whole; its head is "
            f"{found.num_entries}:{found.head.hex()}"
        )


def check_durability(inspection: Inspection) -> Iterator[Evidence]:
    with inspection.engine.connect() as conn:
        for finding in check_postgres(conn):
            detail = f"{finding.subject}: {finding.detail}"
            yield met(detail) if finding.verdict is Verdict.OK else gap(detail, finding.advice)


def check_schema(inspection: Inspection) -> Iterator[Evidence]:
    current, wanted = revisions(inspection.settings.database_url.get_secret_value())
    if lack := describe_lack(current, wanted):
        yield gap(f"the database is not that of this version: {lack}", "Run `ryzanstein migrate`.")
    else:
        yield met(f"the schema is at revision {current}; every change of it is a numbered revision")


def check_models(inspection: Inspection) -> Iterator[Evidence]:
    with inspection.engine.connect() as conn:
        models = conn.execute(select(ServedModel.name, ServedModel.path).order_by(ServedModel.name)).all()
    if not models:
        yield met("no model is served yet")
    for name, path in models:
        yield from _check_folder(name, Path(path), hashes=inspection.hashes_models)


def _check_folder(name: str, folder: Path, *, hashes: bool) -> Iterator[Evidence]:
    if not folder.is_dir():
        yield unknown(f"model {name}: {folder} can't be read here", "Run this where the groups run.")
        return
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    risky = [str(path.relative_to(folder)) for path in files if path.suffix in _PICKLES | _CODE]
    if risky:
        yield gap(
            f"model {name}: {', '.join(risky[:_MOST_NAMED])} can hold code that other programs would run",
            "Remove what is not needed; nothing here opens it.",
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        yield gap(f"model {name}: {folder} has no safetensors", "Only the echo engine can serve it.")
        return
    yield met(f"model {name}: {_size(weights)} bytes of weights in safetensors, in {folder}")
    if hashes:
        for pattern in _MODEL_FILES:
            for path in sorted(folder.glob(pattern)):
                yield met(f"model {name}: SHA-256 of {path.name} is {_sha256(path)}")


def _size(paths: list[Path]) -> str:
    return f"{sum(path.stat().st_size for path in paths):,}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
