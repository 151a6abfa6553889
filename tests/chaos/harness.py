"""Runs batches of two tenants on a real stack while faults go off by schedule, and checks what must be true after."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import openai
import psycopg
from batch_jobs import FINAL, chat_line, check_complete, lines_of, submit, wait_for_batch
from faults import connect
from real_group import MODEL, RealGroup
from schedules import Event, Schedule
from stacks import RunningStack

T = TypeVar("T")

#: Leases and looks so short that a schedule takes seconds; the promise does not depend on their length.
SHORT_LEASES = {
    "RYZANSTEIN_LEASE_SECONDS": "1.5",
    "RYZANSTEIN_SWEEP_SECONDS": "0.5",
    "RYZANSTEIN_RELAY_SECONDS": "0.5",
    "RYZANSTEIN_DRAIN_SECONDS": "0.5",
    #: Faults come far more often here than anywhere: a slice must not fail because all of them hit it.
    "RYZANSTEIN_MAX_ATTEMPTS": "1000",
    #: Ten slices for a schedule of 100 requests, over a second or so.
    "RYZANSTEIN_SLICE_REQUESTS": "10",
    "RYZANSTEIN_ECHO_TOKENS_PER_SECOND": "500",
}
TENANTS = ("north", "south")
#: Of a schedule, for the real engine, beside the others.
REAL_REQUESTS = 10

#: A fault that waits for progress goes off all the same when there was none for so long.
_STALLED_SECONDS = 3.0
#: Within which everything must have ended after the last fault.
_END_SECONDS = 90.0
_LOOK_SECONDS = 0.02


_LOOK = """
    SELECT sum(num_succeeded + num_unsuccessful)::int, bool_and(status = ANY(%s)) FROM batches WHERE id = ANY(%s)
"""


class Violation(AssertionError):
    """Something that the service promises is not true."""


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A fault that went off."""

    fault: str
    #: Requests with an outcome at that moment.
    at: int
    seconds: float
    #: False where another fault had left nothing to hit.
    was_hit: bool


@dataclass(frozen=True, kw_only=True)
class Report:
    """What came of one schedule."""

    seed: int
    #: Of all of its batches.
    num_requests: int
    #: One of each tenant, and one for the real engine if there is one; more where an answer to a submission was lost
    #: and the client submitted again.
    num_batches: int
    seconds: float
    hits: tuple[Hit, ...]
    #: How attempts ended, and how often.
    attempts: dict[str, int]
    violations: tuple[str, ...]


@dataclass
class Chaos:
    """A running stack and its two tenants; and a group with a real engine, if there is one."""

    stack: RunningStack
    real_group: RealGroup | None = None
    clients: dict[str, openai.OpenAI] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for tenant in TENANTS:
            self.clients[tenant] = self.stack.client(self.stack.create_key(tenant))
            # Never reached, but each claim holds room in it, which nothing that dies may keep.
            self.stack.run("budgets", "set", tenant, "1000").check_returncode()

    def run(self, schedule: Schedule, **body: Any) -> Report:
        """Run a schedule to its end. `body` goes into every request. Whatever is not as promised is in the report."""
        return _Run(self, schedule, body).run()


@dataclass
class _Run:
    chaos: Chaos
    schedule: Schedule
    body: dict[str, Any]
    hits: list[Hit] = field(default_factory=list)
    #: Threads that end a fault when its time has come, even while this thread waits for a frozen server.
    healers: list[threading.Thread] = field(default_factory=list)
    batches: dict[str, list[str]] = field(default_factory=dict)
    #: Of the batches for the real engine, which the first tenant submits.
    real_batches: list[str] = field(default_factory=list)
    progress: _Progress = field(init=False)

    def run(self) -> Report:
        began = time.monotonic()
        self.progress = _Progress(self.chaos.stack)
        violations: list[str] = []
        attempts: dict[str, int] = {}
        try:
            self._run_batches()
            attempts = self._check()
        except (AssertionError, openai.APIStatusError, ValueError) as error:
            violations.append(f"{type(error).__name__}: {error}")
        finally:
            for healer in self.healers:
                healer.join()
            self.progress.close()
        return Report(
            seed=self.schedule.seed,
            num_requests=sum(len(self._lines_of(batch_id)) for ids in self.batches.values() for batch_id in ids),
            num_batches=sum(map(len, self.batches.values())),
            seconds=round(time.monotonic() - began, 2),
            hits=tuple(self.hits),
            attempts=attempts,
            violations=tuple(violations),
        )

    # --- the batches, and the faults meanwhile

    def _run_batches(self) -> None:
        pending = deque(self.schedule.events)
        rng = Random(self.schedule.seed)
        while pending and pending[0].after == 0:
            self._inject(pending.popleft(), 0, rng)
        for tenant, client in self.chaos.clients.items():
            self.batches[tenant] = self._submit(client, self._lines())
            if self.chaos.real_group is not None and not self.real_batches:
                self.real_batches = self._submit(client, self._real_lines())
                self.batches[tenant] = [*self.batches[tenant], *self.real_batches]
        all_ids = [batch_id for ids in self.batches.values() for batch_id in ids]

        deadline = time.monotonic() + _END_SECONDS
        moved_at, num_before = time.monotonic(), 0
        while True:
            num_outcomes, are_ended = self.progress.look(all_ids)
            now = time.monotonic()
            if num_outcomes > num_before:
                num_before, moved_at = num_outcomes, now
            is_stalled = now > moved_at + _STALLED_SECONDS
            while pending and (num_outcomes >= pending[0].after or are_ended or is_stalled):
                self._inject(pending.popleft(), num_outcomes, rng)
                deadline, moved_at, is_stalled = time.monotonic() + _END_SECONDS, time.monotonic(), False
            if are_ended and not pending:
                return
            if now > deadline:
                raise Violation(
                    f"{num_outcomes} requests of {all_ids} have an outcome {_END_SECONDS:g} s after the last fault."
                )
            time.sleep(_LOOK_SECONDS)

    def _submit(self, client: openai.OpenAI, lines: list[dict[str, Any]]) -> list[str]:
        """One batch, or more: where the answer to a submission was lost, both are accepted and must end well."""
        tag = {"schedule": f"{self.schedule.seed}-{time.time_ns()}"}
        first = _persistently(lambda: submit(client, lines, metadata=tag).id)
        ids = _persistently(lambda: _tagged(client, tag))
        if first not in ids:
            raise Violation(f"The batch {first} was accepted, and is not there.")
        return ids

    def _lines(self) -> list[dict[str, Any]]:
        return lines_of(self.schedule.num_requests // len(TENANTS), **self.body)

    def _lines_of(self, batch_id: str) -> list[dict[str, Any]]:
        return self._real_lines() if batch_id in self.real_batches else self._lines()

    def _real_lines(self) -> list[dict[str, Any]]:
        return [
            chat_line(f"real-{number}", f"number {number}", model=MODEL, max_tokens=16, ignore_eos=True)
            for number in range(REAL_REQUESTS)
        ]

    def _inject(self, event: Event, num_outcomes: int, rng: Random) -> None:
        was_hit = event.fault.inject(self.chaos.stack, rng)
        self.hits.append(Hit(fault=event.fault.name, at=num_outcomes, seconds=event.seconds, was_hit=was_hit))
        if event.fault.longest:
            healer = threading.Thread(target=self._heal, args=(event, time.monotonic() + event.seconds), daemon=True)
            healer.start()
            self.healers.append(healer)

    def _heal(self, event: Event, at: float) -> None:
        time.sleep(max(0.0, at - time.monotonic()))
        event.fault.heal(self.chaos.stack)

    # --- what must be true then

    def _check(self) -> dict[str, int]:
        for healer in self.healers:
            healer.join()
        for tenant, ids in self.batches.items():
            for batch_id in ids:
                self._check_batch(self.chaos.clients[tenant], batch_id)
        return _persistently(lambda: _attempts(self.chaos.stack, self.batches))

    def _check_batch(self, client: openai.OpenAI, batch_id: str) -> None:
        batch = wait_for_batch(client, batch_id, lambda batch: batch.status in FINAL)
        lines = self._lines_of(batch_id)
        _persistently(lambda: check_complete(self.chaos.stack, batch, lines, client))


class _Progress:
    """Looks into SQL how far batches are, on a connection that it opens again after each fault that closes it."""

    def __init__(self, stack: RunningStack) -> None:
        self._stack = stack
        self._conn: psycopg.Connection[tuple[Any, ...]] | None = None
        self._last = (0, False)

    def look(self, batch_ids: list[str]) -> tuple[int, bool]:
        """Requests with an outcome, and whether all batches have ended. While the database is away, as before."""
        try:
            self._conn = self._conn or connect(self._stack)
            row = self._conn.execute(_LOOK, [sorted(FINAL), batch_ids]).fetchone()
        except psycopg.Error:
            self.close()
            return self._last
        assert row is not None
        self._last = (row[0], bool(row[1]))
        return self._last

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()
            self._conn = None


def _tagged(client: openai.OpenAI, tag: dict[str, str]) -> list[str]:
    """The newest batches with this metadata."""
    return [batch.id for batch in client.batches.list(limit=20).data if batch.metadata == tag]


def _attempts(stack: RunningStack, batches: dict[str, list[str]]) -> dict[str, int]:
    ids = [batch_id for ids in batches.values() for batch_id in ids]
    with connect(stack) as conn:
        rows = conn.execute(
            "SELECT coalesce(\"end\", 'running'), count(*) FROM attempts WHERE batch_id = ANY(%s) GROUP BY 1", [ids]
        ).fetchall()
    return {str(end): count for end, count in rows}


def _persistently(work: Callable[[], T], limit: float = 60.0) -> T:
    """What a client with patience does: again, while the service or its database is away."""
    deadline = time.monotonic() + limit
    while True:
        try:
            return work()
        except (openai.APIConnectionError, openai.InternalServerError, psycopg.OperationalError) as error:
            if time.monotonic() > deadline:
                raise Violation(f"The service did not come back within {limit:g} s: {type(error).__name__}") from error
            time.sleep(0.1)


@contextlib.contextmanager
def running(folder: Path, model: Path, *options: str, has_real_group: bool = False, **env: str) -> Iterator[Chaos]:
    """A stack that is audited in the end, taken down, and has left no process behind."""
    stack = RunningStack(folder, model, options, {**SHORT_LEASES, **env})
    real_group = RealGroup(stack) if has_real_group else None
    try:
        stack.up()
        if real_group is not None:
            real_group.start()
        yield Chaos(stack, real_group)
        check_at_rest(stack)
    finally:
        if real_group is not None:
            real_group.stop()
        stack.end()


def check_at_rest(stack: RunningStack, limit: float = 60.0) -> None:
    """Audit all that this database has ever held. Raises Violation with what does not agree.

    Again for a while, since what is under way ends by itself: a group says every lease or so what its engine holds.
    """
    deadline = time.monotonic() + limit
    while True:
        done = stack.run("audit", "--at-rest", "--json")
        if done.returncode == 0:
            return
        if time.monotonic() > deadline:
            findings = json.loads(done.stdout) if done.stdout.startswith("[") else done.stderr
            wrong = [one for one in findings if one["violations"]] if isinstance(findings, list) else findings
            raise Violation(f"The audit does not agree: {wrong}")
        time.sleep(1.0)
