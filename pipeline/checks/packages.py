"""Whether what is installed fits together."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Final

from packaging.requirements import Requirement

from pipeline.checks.findings import Finding, failed, ok

_SHOWN: Final = ("torch", "celery", "kombu", "redis", "sqlalchemy", "psycopg", "fastapi", "openai", "flower")

#: Packages that are not asked for by name, and releases of them with which the service does not keep its word.
_KNOWN_BAD: Final = (
    ("kombu<5.7", "a worker may take nothing more after its connection to Redis was reset (kombu 2498, 2492, 2561)"),
)


def check_packages(wanted: Sequence[str] | None = None) -> Iterator[Finding]:
    """`wanted`: what this package asks for, as its metadata says it."""
    wrong = [*_unmet(requires("ryzanstein") or () if wanted is None else wanted), *_known_bad()]
    yield from wrong
    if not wrong:
        versions = ", ".join(f"{name} {version(name)}" for name in _SHOWN)
        yield ok("versions", f"ryzanstein {version('ryzanstein')} on Python {platform.python_version()}; {versions}")


def _unmet(wanted: Sequence[str]) -> Iterator[Finding]:
    for text in wanted:
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(needed.name)
        except PackageNotFoundError:
            yield _wrong(needed.name, f"is not installed, and {needed.specifier or 'any version'} is wanted")
            continue
        if not needed.specifier.contains(found, prereleases=True):
            yield _wrong(needed.name, f"{found} is installed, and {needed.specifier} is wanted")


def _known_bad() -> Iterator[Finding]:
    for text, reason in _KNOWN_BAD:
        bad = Requirement(text)
        if bad.specifier.contains(version(bad.name), prereleases=True):
            yield _wrong(bad.name, f"{version(bad.name)} is installed: {reason}")


def _wrong(name: str, detail: str) -> Finding:
    return failed(f"package {name}", detail, "Install the package again with `pip install -c constraints.txt`.")
