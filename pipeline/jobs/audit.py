"""The audit: does what SQL holds agree with what is promised?

Each invariant is one query for what breaks it. All of them see one snapshot, so that a running system can be audited;
those that hold only where nothing is under way are looked at on request. Reads alone, and never locks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, Engine, text

from pipeline.celery import BROKER_ERRORS, generate_queue, queue_lengths
from pipeline.jobs.book_invariants import OF_BOOKS
from pipeline.jobs.invariants import AT_REST, OF_BATCHES, Invariant
from pipeline.settings import get_settings
from pipeline.tables.session import get_engine

#: What holds at any moment.
INVARIANTS: Final = (*OF_BATCHES, *OF_BOOKS)
#: Of each invariant, so many violations are named.
MOST_NAMED: Final = 100
#: A pending slice may be without a ticket for so long: that of a group which has it in hand, or one that was lost.
TICKET_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is not as promised."""

    #: What it is about, such as `batch batch_…` or `request 17`; ids alone, never content.
    subject: str
    #: What was found, and what should be.
    found: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One invariant, and what breaks it."""

    invariant: str
    violations: tuple[Violation, ...] = ()
    #: Why it could not be checked.
    unchecked: str | None = None

    @property
    def holds(self) -> bool:
        return not self.violations and self.unchecked is None


@dataclass(frozen=True, slots=True)
class Audit:
    findings: tuple[Finding, ...]

    @property
    def violations(self) -> list[tuple[str, Violation]]:
        return [(finding.invariant, one) for finding in self.findings for one in finding.violations]


_TICKETS: Final = "no slice waits without a ticket"
_PENDING: Final = text("""
    SELECT s.model, count(*) AS num_slices FROM slices s JOIN batches b ON b.id = s.batch_id
    WHERE s.status = 'pending' AND b.status = 'in_progress' AND b.expires_at > now() AND b.pause_reason IS NULL
    GROUP BY s.model ORDER BY s.model
""")
_UNPUBLISHED: Final = text("SELECT queue, count(*) AS num_messages FROM outbox GROUP BY queue")


def audit(engine: Engine | None = None, *, at_rest: bool = False) -> Audit:
    """Look at every invariant; with `at_rest`, also at those that hold only while nothing is under way."""
    engine = engine or get_engine()
    settings = get_settings()
    values = {"lease_seconds": settings.lease_seconds, "sweep_seconds": settings.sweep_seconds}
    snapshot = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    with snapshot.begin() as conn:
        # Some of these read whole tables: they take the time that it takes.
        conn.execute(text("SET LOCAL statement_timeout = 0"))
        findings = [look(conn, one, values) for one in (*INVARIANTS, *(AT_REST if at_rest else ()))]
    findings.append(_look_at_tickets(engine))
    return Audit(tuple(findings))


def look(conn: Connection, invariant: Invariant, values: dict[str, float]) -> Finding:
    query = text(f"SELECT * FROM ({invariant.query}) AS v LIMIT {MOST_NAMED}")  # noqa: S608 — all of it is ours
    wanted = {name: value for name, value in values.items() if f":{name}" in invariant.query}
    return Finding(invariant.statement, tuple(Violation(*row) for row in conn.execute(query, wanted)))


def _look_at_tickets(engine: Engine) -> Finding:
    """A violation is one that lasts: the sweeper replaces a ticket that was lost."""
    deadline = time.monotonic() + TICKET_SECONDS
    while True:
        try:
            missing = _missing_tickets(engine)
        except BROKER_ERRORS:
            return Finding(_TICKETS, unchecked="Redis is away")
        if not missing or time.monotonic() >= deadline:
            return Finding(_TICKETS, tuple(missing))
        time.sleep(_LOOK_SECONDS)


def _missing_tickets(engine: Engine) -> Sequence[Violation]:
    with engine.begin() as conn:
        pending = {row.model: row.num_slices for row in conn.execute(_PENDING)}
        unpublished = {row.queue: row.num_messages for row in conn.execute(_UNPUBLISHED)}
    if not pending:
        return []
    published = queue_lengths(map(generate_queue, pending))
    missing = []
    for model, num_slices in pending.items():
        queue = generate_queue(model)
        num_tickets = published[queue] + unpublished.get(queue, 0)
        if num_tickets < num_slices:
            missing.append(
                Violation(f"model {model}", f"{num_slices} slices wait, and there are {num_tickets} tickets")
            )
    return missing
