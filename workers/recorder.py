"""Takes outcomes from the engine and records them, in groups."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final, TypeVar

import structlog
from sqlalchemy import Connection
from sqlalchemy import Engine as Database

from pipeline.jobs import outbox
from pipeline.jobs.claiming import ClaimedSlice, PlannedRequest, count_crash_exposures
from pipeline.jobs.partial_outputs import save_parts
from pipeline.jobs.recording import Recorded, RequestOutcome, record_outcomes
from pipeline.jobs.waste import WastePart, record_lost
from pipeline.settings import Settings
from pipeline.tables.rates import WasteCause
from pipeline.tables.requests import OutcomeKind
from pipeline.tables.slices import AttemptEnd
from pipeline.telemetry.logs import summarize_error
from workers.answers import outcome_of, without_answer
from workers.attempt_trace import recording_span
from workers.backends.protocol import Engine, Outcome, OutcomeStatus
from workers.counters import GroupCounters
from workers.held_slices import HeldSlice, HeldSlices, InFlight
from workers.partial_outputs import UnsavedOutputs, encode_part
from workers.retries import TRANSIENT, Outage, until_done
from workers.threads import GuardedThread
from workers.waste import too_late, wasted

log = structlog.get_logger(__name__)

ENGINE_CRASHED: Final = "engine_crashed"

T = TypeVar("T")

#: Longest wait for the engine, so that outcomes which do not come from it are seen.
_LONGEST_WAIT: Final = 0.25

#: Answers recorded in one transaction at most, in characters; PostgreSQL refuses a message of 1 GiB, which some long
#: answers with all of their log-probabilities come to.
_MOST_CHARACTERS: Final = 32 * 1024**2


@dataclass(eq=False, slots=True)
class _Unrecorded:
    held: HeldSlice
    outcome: RequestOutcome
    #: Whether a commit of it has failed, and may have arrived all the same.
    is_in_doubt: bool = False


class Recorder:
    """One thread between the engine and SQL. While SQL is away, outcomes wait here and in the engine.

    It also saves what running requests have come to, so that a group that dies loses little of it.
    """

    def __init__(
        self,
        engine: Engine,
        held_slices: HeldSlices,
        database: Database,
        settings: Settings,
        on_failure: Callable[[], None],
        counters: GroupCounters,
    ) -> None:
        self._engine = engine
        self._held_slices = held_slices
        self._database = database
        self._settings = settings
        self._counters = counters
        self._lock = threading.Lock()
        self._buffer: list[_Unrecorded] = []
        self._first_at = 0.0
        self._outage = Outage("recording outcomes")
        #: The recorder thread's own.
        self._connection: Connection | None = None
        self._unsaved = UnsavedOutputs()
        #: The same: what was computed for slices that were lost, of which SQL has not been told.
        self._lost_work: list[tuple[ClaimedSlice, WastePart]] = []
        self._is_stopping = threading.Event()
        self._give_up = threading.Event()
        self._thread = GuardedThread("recorder", self._run, on_failure)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Record what there is, for at most so long. What is left then is answered again by another attempt."""
        self._is_stopping.set()
        self._thread.join(timeout)
        self._give_up.set()
        self._thread.join(timeout)

    def add(self, held: HeldSlice, requests: Iterable[PlannedRequest], kind: OutcomeKind) -> None:
        """Outcomes of requests that never reached the engine."""
        self._keep([_Unrecorded(held, without_answer(held, request, kind)) for request in requests])

    def _run(self) -> None:
        while not (self._is_stopping.is_set() and not self._buffer):
            self._take()
            if self._is_due():
                self._flush()
            if self._unsaved.is_due() and not self._outage.seconds_to_retry:
                self._save_outputs()
            if self._lost_work and not self._outage.seconds_to_retry:
                self._tell_lost_work()
        if self._lost_work:
            self._tell_lost_work()
        if self._connection is not None:
            self._connection.close()

    # --- from the engine

    def _take(self) -> None:
        outcomes = self._engine.take_outcomes(self._room(), self._wait())
        for progress in self._engine.take_progress():
            if (running := self._held_slices.find_in_flight(progress.id)) is not None:
                self._unsaved.add(running, progress.partial)
        if any(outcome.status in (OutcomeStatus.CRASHED, OutcomeStatus.ABORTED) for outcome in outcomes):
            self._save_outputs()  # before anybody can know that they have ended, and return their slice
        crashed: list[InFlight] = []
        for outcome in outcomes:
            if (lost := self._held_slices.find_lost(outcome.id)) is not None:
                lost.held.waste.add(wasted(WasteCause.LOST_LEASE, outcome))
                self._lost_work += [(lost.held.claimed, part) for part in lost.held.waste.take()]
            left = self._held_slices.settle(outcome.id)
            if left is None:
                continue
            if outcome.status is OutcomeStatus.CRASHED and left.held.ending is None:
                left.held.waste.add(wasted(WasteCause.CRASH, outcome))
                crashed.append(_with_output(left, outcome))
            elif outcome.status is OutcomeStatus.ABORTED and left.held.ending is None:
                left.held.waste.add(wasted(WasteCause.DRAIN, outcome))
                self._put_back(left.held, _with_output(left, outcome).request)
            else:
                self._unsaved.forget(left.request.id)
                self._keep([_Unrecorded(left.held, outcome_of(left, outcome))])
        if crashed:
            self._after_crash(crashed)

    def _room(self) -> int:
        """How many outcomes to take. While SQL is away more come than can be recorded, so that work goes on."""
        with self._lock:
            return max(1, self._settings.record_requests - len(self._buffer))

    def _wait(self) -> float:
        """How long to wait for the next outcome, in seconds."""
        if self._outage.seconds_to_retry:
            return min(_LONGEST_WAIT, self._outage.seconds_to_retry)
        with self._lock:
            if self._is_stopping.is_set() or len(self._buffer) >= self._settings.record_requests:
                return 0.0
            if not self._buffer:
                return _LONGEST_WAIT
            return min(_LONGEST_WAIT, max(0.0, self._first_at + self._settings.record_seconds - time.monotonic()))

    def _after_crash(self, crashed: list[InFlight]) -> None:
        """Run them again, but for those that the engine crashed with too often."""
        requests = [left.request for left in crashed]
        log.warning("the engine crashed", requests=len(requests))

        def count() -> dict[int, int]:
            with self._database.begin() as conn:
                return count_crash_exposures(conn, requests)

        try:
            exposures = until_done(count, what="counting crash exposures", give_up=self._give_up)
        except TRANSIENT:
            exposures = {}
        for left in crashed:
            again = left.request.exposed(exposures.get(left.request.id, left.request.num_crash_exposures))
            if again.num_crash_exposures < self._settings.max_crash_exposures:
                self._put_back(left.held, again)
                continue
            message = f"The engine crashed {again.num_crash_exposures} times while it worked on this request."
            failed = without_answer(left.held, again, OutcomeKind.FAILED, ENGINE_CRASHED, message)
            self._keep([_Unrecorded(left.held, failed)])

    def _put_back(self, held: HeldSlice, request: PlannedRequest) -> None:
        kept = self._held_slices.put_back(held, [request])
        if kept and held.ending is not None:
            self.add(held, kept, held.ending)

    # --- to SQL

    def _keep(self, unrecorded: list[_Unrecorded]) -> None:
        with self._lock:
            if unrecorded and not self._buffer:
                self._first_at = time.monotonic()
            self._buffer += unrecorded

    def _is_due(self) -> bool:
        with self._lock:
            if not self._buffer or (self._outage.seconds_to_retry and not self._give_up.is_set()):
                return False
            is_full = len(self._buffer) >= self._settings.record_requests
            is_old = time.monotonic() >= self._first_at + self._settings.record_seconds
        # Nothing else will come, so that a lone request need not wait for company.
        return is_full or is_old or self._is_stopping.is_set() or not self._held_slices.expects_outcomes()

    def _flush(self) -> None:
        group = self._next_group()
        try:
            self._record(group)
        except TRANSIENT as error:
            # Whether the commit arrived or not, the same again is right: see record_outcomes.
            self._outage.failed(error)
            if not self._give_up.is_set():
                return
            self._abandon(group, error)
        except Exception as error:  # noqa: BLE001 — one slice that can't be recorded must not hold up the others
            if len({unrecorded.held for unrecorded in group}) == 1:
                self._abandon(group, error)
            else:
                self._record_apart(group)
        with self._lock:
            del self._buffer[: len(group)]
            self._first_at = time.monotonic()
        self._held_slices.recorded(len(group))

    def _next_group(self) -> list[_Unrecorded]:
        """The oldest outcomes, one at least."""
        with self._lock:
            group = self._buffer[: self._settings.record_requests]
        sizes = accumulate(len(unrecorded.outcome.body or "") for unrecorded in group)
        return group[: max(1, sum(size <= _MOST_CHARACTERS for size in sizes))]

    def _record(self, group: list[_Unrecorded]) -> None:
        # What was lost may be this group's again, under another lease.
        lost = [unrecorded for unrecorded in group if unrecorded.held.end is AttemptEnd.LOST]
        held = [unrecorded for unrecorded in group if unrecorded not in lost]
        if held:
            lost += self._record_held(held)
        self._waste(lost)

    def _record_held(self, group: list[_Unrecorded]) -> list[_Unrecorded]:
        """Returns those of which nothing was recorded: their lease was lost as well."""
        began = time.monotonic()
        recorded = self._write(group)
        self._outage.succeeded()
        stale = [unrecorded for unrecorded in group if unrecorded.held.claimed.id in recorded.stale]
        self._counters.recorded(
            [unrecorded.outcome for unrecorded in group if unrecorded not in stale], time.monotonic() - began
        )
        if recorded.finished_batches:
            outbox.publish_soon(self._database)
        for unrecorded in group:
            _count(unrecorded)
        for held in {unrecorded.held for unrecorded in group}:
            if held.claimed.id in recorded.stale:
                self._lose(held)
            elif held.claimed.id in recorded.done:
                self._held_slices.end(held, AttemptEnd.FINISHED)
        return stale

    def _waste(self, lost: list[_Unrecorded]) -> None:
        """What was computed for nothing. What may have been recorded is left out: it must not count as both."""
        self._lost_work += [
            (unrecorded.held.claimed, part)
            for unrecorded in lost
            if not unrecorded.is_in_doubt
            for part in too_late(unrecorded.outcome)
        ]

    def _save_outputs(self) -> None:
        """What can't be saved now is saved with what comes next."""
        parts = self._unsaved.parts()
        if not parts:
            return
        try:
            self._in_transaction(lambda conn: save_parts(conn, parts))
        except TRANSIENT as error:
            self._outage.failed(error)
            return
        except Exception as error:  # noqa: BLE001 — without them more is lost with the group, but nothing is wrong
            log.error("partial outputs could not be saved", requests=len(parts), reason=summarize_error(error))
        # Of a slice that was lost nothing was saved; the heartbeat finds out, and then it is forgotten.
        self._unsaved.saved(parts)

    def _tell_lost_work(self) -> None:
        """Once, as well as it can be: it is nobody's bill, and a commit of unknown fate must not count it twice."""
        lost, self._lost_work = self._lost_work, []
        try:
            self._in_transaction(lambda conn: record_lost(conn, lost))
            self._counters.wasted(part for _, part in lost)
        except TRANSIENT as error:
            self._outage.failed(error)
            log.warning("waste could not be recorded", parts=len(lost), reason=summarize_error(error))

    def _write(self, group: list[_Unrecorded]) -> Recorded:
        try:
            with recording_span([unrecorded.held.trace for unrecorded in group], len(group)):
                return self._in_transaction(
                    lambda conn: record_outcomes(conn, [unrecorded.outcome for unrecorded in group])
                )
        except TRANSIENT:
            for unrecorded in group:
                unrecorded.is_in_doubt = True
            raise

    def _in_transaction(self, work: Callable[[Connection], T]) -> T:
        """On a connection that is kept: to test one from the pool takes another round."""
        if self._connection is None:
            self._connection = self._database.connect()
        try:
            with self._connection.begin():
                return work(self._connection)
        except BaseException:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None
            raise

    def _record_apart(self, group: list[_Unrecorded]) -> None:
        by_slice: dict[HeldSlice, list[_Unrecorded]] = defaultdict(list)
        for unrecorded in group:
            by_slice[unrecorded.held].append(unrecorded)
        for part in by_slice.values():
            try:
                self._record(part)
            except Exception as error:  # noqa: BLE001 — see _flush
                self._abandon(part, error)

    def _abandon(self, group: list[_Unrecorded], error: Exception) -> None:
        """Let the leases run out: the sweeper counts the attempt, and ends a slice that fails again and again."""
        for held in {unrecorded.held for unrecorded in group}:
            log.error("outcomes could not be recorded", **held.claimed.ids, reason=summarize_error(error))
            self._lose(held)
        self._waste(group)

    def _lose(self, held: HeldSlice) -> None:
        log.warning("a slice was lost", **held.claimed.ids)
        self._engine.abort(self._held_slices.end(held, AttemptEnd.LOST))


def _with_output(left: InFlight, outcome: Outcome) -> InFlight:
    """The request with all that is known of its answer; the engine knows at least what SQL does."""
    if outcome.partial is None:
        return left
    return replace(left, request=left.request.with_output((encode_part(outcome.partial),)))


def _count(unrecorded: _Unrecorded) -> None:
    """For the summary of the ticket alone; the truth is in SQL."""
    held, outcome = unrecorded.held, unrecorded.outcome
    if outcome.usage is None:
        held.num_unsuccessful += 1
    else:
        held.num_succeeded += 1
        held.num_completion_tokens += outcome.usage.num_completion_tokens
        if held.trace is not None:
            held.trace.add(outcome.usage)
