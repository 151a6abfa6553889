"""What a check has found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    OK = "ok"
    WARNING = "warning"  #: The service may run without it.
    FAILED = "failed"  #: The service can't run like this.


@dataclass(frozen=True, kw_only=True)
class Finding:
    subject: str
    verdict: Verdict
    detail: str
    #: What to do about it; empty where there is nothing to do.
    advice: str = ""


def ok(subject: str, detail: str) -> Finding:
    return Finding(subject=subject, verdict=Verdict.OK, detail=detail)


def warning(subject: str, detail: str, advice: str) -> Finding:
    return Finding(subject=subject, verdict=Verdict.WARNING, detail=detail, advice=advice)


def failed(subject: str, detail: str, advice: str) -> Finding:
    return Finding(subject=subject, verdict=Verdict.FAILED, detail=detail, advice=advice)
