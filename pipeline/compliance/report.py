"""Looks at every control, and says what was found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from pipeline.compliance.controls import CONTROLS, Control, Framework
from pipeline.compliance.evidence import Check, Evidence, Inspection, State, unknown
from pipeline.errors import PipelineError


@dataclass(frozen=True, kw_only=True)
class Examined:
    """A control, and what was seen of it."""

    control: Control
    evidence: tuple[Evidence, ...]

    @property
    def state(self) -> str:
        """The worst of its evidence; `met in part` where this version lacks something, or all is up to people."""
        states = {one.state for one in self.evidence}
        for state in (State.GAP, State.UNKNOWN):
            if state in states:
                return str(state)
        return "met in part" if self.control.missing or not states else str(State.MET)

    def gaps(self) -> Iterator[Evidence]:
        return (one for one in self.evidence if one.state is State.GAP)


@dataclass(frozen=True, kw_only=True)
class Report:
    made_at: datetime
    version: str
    examined: tuple[Examined, ...]

    @property
    def num_gaps(self) -> int:
        return sum(1 for one in self.examined for _ in one.gaps())

    @property
    def num_unknown(self) -> int:
        return sum(evidence.state is State.UNKNOWN for one in self.examined for evidence in one.evidence)

    @property
    def num_missing(self) -> int:
        return sum(len(one.control.missing) for one in self.examined)

    @property
    def summary(self) -> str:
        return (
            f"{len(self.examined)} controls: {self.num_gaps} gaps that you can close, {self.num_missing} that this "
            f"version leaves, {self.num_unknown} things that could not be looked at."
        )

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "made_at": self.made_at.isoformat(timespec="seconds"),
            "version": self.version,
            "summary": {"gaps": self.num_gaps, "missing": self.num_missing, "not_checked": self.num_unknown},
            "controls": [_object(one) for one in self.examined],
        }


def make_report(inspection: Inspection, *, now: datetime, version: str) -> Report:
    """Run every check. One whose server is away is evidence of its own, and keeps no other from running."""
    examined = tuple(
        Examined(
            control=control, evidence=tuple(one for check in control.checks for one in _evidence(check, inspection))
        )
        for control in CONTROLS
    )
    return Report(made_at=now, version=version, examined=examined)


def _evidence(check: Check, inspection: Inspection) -> Iterator[Evidence]:
    try:
        yield from check(inspection)
    except SQLAlchemyError as error:
        yield unknown(f"PostgreSQL could not be asked ({type(error).__name__})", "`ryzanstein doctor` says more.")
    except RedisError as error:
        yield unknown(f"Redis could not be asked ({type(error).__name__})", "`ryzanstein doctor` says more.")
    except (PipelineError, OSError) as error:
        yield unknown(f"it could not be looked at: {error}")


def _object(one: Examined) -> dict[str, Any]:
    control = one.control
    return {
        "id": control.id,
        "title": control.title,
        "state": one.state,
        "statement": control.statement,
        "clauses": {str(framework): list(control.clauses(framework)) for framework in Framework},
        "evidence": [asdict(evidence) for evidence in one.evidence],
        "missing": list(control.missing),
        "duties": list(control.duties),
    }
