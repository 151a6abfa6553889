"""A group: claims slices, feeds its engine, and has the outcomes recorded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import structlog
from sqlalchemy import Engine as Database

from pipeline.jobs import outbox
from pipeline.jobs.claiming import (
    ClaimedSlice,
    PlannedRequest,
    claim_slice,
    expire_leases,
    is_committed,
    load_requests,
    return_slice,
)
from pipeline.jobs.waste import WastePart
from pipeline.settings import Settings
from pipeline.tables.fleet import GroupState
from pipeline.tables.slices import AttemptEnd
from pipeline.telemetry.logs import summarize_error
from pipeline.telemetry.metrics.registry import make_registry
from workers.attempt_trace import AttemptTrace, Ticket
from workers.backends.protocol import Engine, EngineStartError, EngineState
from workers.counters import GroupCounters
from workers.drain import Drain
from workers.feeder import Feeder
from workers.fleet import GroupCondition, GroupIdentity, register, report
from workers.heartbeat import Heartbeat, condition_of
from workers.held_slices import HeldSlice, HeldSlices
from workers.metrics import GroupMetrics
from workers.readiness import Readiness
from workers.recorder import Recorder
from workers.retries import TRANSIENT, until_done
from workers.threads import GuardedThread

log = structlog.get_logger(__name__)

#: How much more than it can run at once an engine is given, so that it never waits for the next request.
_FEED_AHEAD: Final = 1.25
#: How soon a ticket that waits for the engine finds that it is back, in seconds.
_ENGINE_LOOK_SECONDS: Final = 0.25
#: Time for an engine to say what became of requests that it was told to stop, in seconds.
_ABORT_SECONDS: Final = 5.0
#: Time for what is left to reach SQL when a group stops, in seconds.
_LAST_WORDS_SECONDS: Final = 10.0


class Group:
    """One engine and the slices that it works on. `on_failure` is called if the group can't go on as a whole.

    Tickets come in threads of their own (`run_ticket`). Where none come, the group looks into SQL by itself.
    """

    def __init__(
        self,
        engine: Engine,
        identity: GroupIdentity,
        settings: Settings,
        database: Database,
        on_failure: Callable[[], None],
    ) -> None:
        self.identity = identity
        self._engine = engine
        self._settings = settings
        self._database = database
        #: What `/metrics` of this group shows.
        self.metrics = make_registry(database)
        self._counters = GroupCounters(identity.id, identity.model, self.metrics)
        self._held_slices = HeldSlices(
            settings.group_slices, int(settings.max_num_sequences * _FEED_AHEAD), self._counters.attempt_ended
        )
        self._feeder = Feeder(engine, self._held_slices, on_failure)
        self._recorder = Recorder(engine, self._held_slices, database, settings, on_failure, self._counters)
        self._pause = Drain(self._held_slices, self._return_all, settings.drain_seconds, on_failure)
        self.readiness = Readiness(engine, database, settings, has_work=lambda: bool(self._held_slices.in_flight_ids()))
        self.metrics.register(
            GroupMetrics(
                engine,
                identity,
                num_slices=lambda: self._held_slices.num_held,
                num_unrecorded=lambda: self._held_slices.num_unrecorded,
                seconds_since_renewal=self.readiness.seconds_since_renewal,
            )
        )
        self._heartbeat = Heartbeat(
            identity,
            engine,
            self._held_slices,
            self._recorder,
            database,
            settings,
            drain=self._pause,
            readiness=self.readiness,
            on_unable=self._return_all,
            on_failure=on_failure,
        )
        self._poller = GuardedThread("poller", self._poll, on_failure)
        self._drainer = GuardedThread("drainer", self._drain, on_failure)
        self._last_slice: ClaimedSlice | None = None
        self._is_draining = threading.Event()
        self._is_hurried = threading.Event()
        self._is_drained = threading.Event()
        #: Whether an exception may still end it, in place of a drain: nothing can have been claimed.
        self.is_loading = True
        self._is_started = False
        #: Whether its row says that it runs.
        self._is_listed = False
        #: Called in the thread of a ticket when its slice is claimed, or is not: another ticket may be wanted.
        self.on_claimed: Callable[[], None] = lambda: None

    # --- its life

    def start(self) -> None:
        """Load the model and begin to work. Raises EngineStartError; the group's row then says why."""

        def enter() -> None:
            with self._database.begin() as conn:
                self._pause.want(register(conn, self.identity))
                expire_leases(conn, self.identity.id)

        until_done(enter, what="registering the group", give_up=self._is_draining)
        self._is_listed = True
        began = time.monotonic()
        try:
            self._engine.start()
        except EngineStartError as error:
            self._report_stop(str(error))
            raise
        self.is_loading = False
        log.info("the engine is ready", model=self.identity.model, seconds=round(time.monotonic() - began, 1))
        if num_kv_tokens := self._engine.load().num_kv_tokens:  # an echo has no cache
            self._held_slices.limit_tokens(num_kv_tokens)
        condition = condition_of(self._engine, self._pause.state)
        self.readiness.renewed()  # there is nothing to renew
        self.readiness.saw(condition.state)
        self._tell(condition)
        self._is_started = True
        for part in (self._feeder, self._recorder, self._heartbeat, self._poller, self._drainer):
            part.start()

    def drain(self, *, hurry: bool = False) -> None:
        """Begin to stop: take nothing more, finish what runs within the drain time, return the rest.

        `hurry` returns all of it at once. Returns at once, but takes locks: not for a signal handler.
        """
        if hurry:
            self._is_hurried.set()
        self._is_draining.set()

    def stop(self) -> None:
        """Drain if that has not been done, and end the engine and all threads."""
        self.is_loading = False
        self.drain()
        if self._is_started:
            self._drainer.join()
            self._poller.join()
            self._feeder.stop()
            self._recorder.stop(_LAST_WORDS_SECONDS)
            self._heartbeat.stop()
            self._pause.stop()
        self._engine.stop()
        if self._is_listed:
            self._report_stop(None)

    def describe(self) -> dict[str, Any]:
        """What Flower shows of the worker: model, hardware, and how its engine is."""
        condition, known = condition_of(self._engine, self._pause.state), dict(self.identity.info)
        if memory := known.pop("memory_bytes", None):
            known["memory"] = f"{memory / 1024**3:.0f} GiB"
        return {
            "model": self.identity.model,
            **known,
            "state": condition.state.value,
            **condition.info,
            "ranks": list(condition.rank_pids),
        }

    # --- slices

    @property
    def num_tickets_wanted(self) -> int:
        """How many tickets to have in hand, those of the slices that are held among them; the others may wait."""
        return self._held_slices.num_wanted

    def run_ticket(self, ticket: Ticket | None = None) -> dict[str, Any]:
        """Claim a slice and stay until it ends; returns what became of it.

        While the engine is away a ticket waits for it: dropped, it would be missing to another group.
        """
        while not self._reserve():
            if self._is_draining.is_set() or self._held_slices.is_paused:
                return {"slice": None, "end": "draining"}
        held = self._claim(ticket)
        self.on_claimed()
        if held is None:
            return {"slice": None, "end": "nothing to claim"}
        held.ended.wait()
        return _summary(held)

    def _reserve(self) -> bool:
        """Room for a slice that the engine can work on; False if there is none for a while."""
        if self._engine.health().state is EngineState.READY:
            return self._held_slices.reserve(timeout=1.0)
        self._is_draining.wait(_ENGINE_LOOK_SECONDS)
        return False

    def _poll(self) -> None:
        """Claim without a ticket, so that the loss of Redis costs seconds, never jobs."""
        while not self._is_draining.wait(self._settings.sweep_seconds):
            while self._held_slices.reserve(timeout=0) and self._claim() is not None:
                pass

    def _claim(self, ticket: Ticket | None = None) -> HeldSlice | None:
        """Claim a slice for a reservation, which is used up or released."""
        claim_ns = time.time_ns()
        try:
            claimed, requests = self._claim_in_sql() if self._engine.health().state is EngineState.READY else (None, [])
        except TRANSIENT as error:
            log.warning("the database is away; nothing is claimed", reason=summarize_error(error))
            claimed, requests = None, []
        except BaseException:
            self._held_slices.release()
            raise
        if claimed is None or not requests:
            if claimed is not None:
                # The sweeper counts the attempt when the lease has run out.
                log.error("a slice has no request without an outcome", **claimed.ids)
            self._held_slices.release()
            return None
        self._last_slice = claimed
        if (lost := self._held_slices.find(claimed.id)) is not None:  # its lease ran out, and nobody here knows yet
            self._engine.abort(self._held_slices.end(lost, AttemptEnd.LOST))
        trace = AttemptTrace.begin(claimed, len(requests), ticket=ticket, claim_ns=claim_ns)
        held = self._held_slices.hold(claimed, requests, trace)
        if held is None:
            self._counters.attempt_ended(AttemptEnd.RETURNED)
            self._return(claimed, ())
        return held

    def _claim_in_sql(self) -> tuple[ClaimedSlice | None, list[PlannedRequest]]:
        """A slice and its requests. A commit whose answer was lost is settled: nobody else knows of such a claim."""
        claimed: ClaimedSlice | None = None
        requests: list[PlannedRequest] = []
        try:
            with self._database.begin() as conn:
                claimed = claim_slice(
                    conn,
                    model=self.identity.model,
                    group_id=self.identity.id,
                    lease_seconds=self._settings.lease_seconds,
                    last_slice=self._last_slice,
                )
                requests = load_requests(conn, claimed) if claimed else []
        except TRANSIENT:
            if (lost := claimed) is None:
                raise

            def settle() -> bool:
                with self._database.begin() as conn:
                    return is_committed(conn, lost)

            if not until_done(settle, what="settling a claim", give_up=self._is_draining):
                raise
        return claimed, requests

    # --- giving back

    def _drain(self) -> None:
        self._is_draining.wait()
        self._held_slices.close()
        deadline = time.monotonic() + self._settings.drain_seconds
        while not self._is_hurried.is_set() and time.monotonic() < deadline:
            if self._held_slices.wait_until_settled(timeout=0.1):
                break
        self._return_all()
        self._is_drained.set()

    def _return_all(self) -> None:
        """Stop what runs, have what has ended recorded, and give all slices back."""
        self._engine.abort(self._held_slices.in_flight_ids())
        self._held_slices.wait_until_settled(_ABORT_SECONDS)
        for held in self._held_slices.all():
            self._return(held.claimed, held.waste.take())
            self._held_slices.end(held, AttemptEnd.RETURNED)

    def _return(self, claimed: ClaimedSlice, waste: Sequence[WastePart]) -> None:
        try:
            with self._database.begin() as conn:
                is_returned = return_slice(conn, claimed, waste)
        except TRANSIENT as error:
            log.warning(
                "a slice could not be returned; its lease runs out", **claimed.ids, reason=summarize_error(error)
            )
            return
        self._counters.wasted(waste)
        if is_returned:
            log.info("a slice was returned", **claimed.ids)
            outbox.publish_soon(self._database)

    # --- what SQL is told

    def _report_stop(self, reason: str | None) -> None:
        self._is_listed = False
        self._tell(GroupCondition(state=GroupState.STOPPED, reason=reason))

    def _tell(self, condition: GroupCondition) -> None:
        try:
            with self._database.begin() as conn:
                report(conn, self.identity, condition)
        except TRANSIENT as error:
            log.warning("the group's state could not be recorded", reason=summarize_error(error))


def _summary(held: HeldSlice) -> dict[str, Any]:
    """What Flower shows of a ticket; in a list, as much of its beginning as there is room for."""
    return {
        "attempt": held.claimed.lease_epoch,
        "succeeded": held.num_succeeded,
        "completion_tokens": held.num_completion_tokens,
        "unsuccessful": held.num_unsuccessful,
        "end": held.end.value if held.end else None,
        "slice": held.claimed.id,
        "batch": held.claimed.batch_id,
    }
