"""Keeps a group's leases and its row fresh, and hears from SQL what it must stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

import structlog
from sqlalchemy import Engine as Database

from pipeline.jobs.claiming import Renewal, renew_leases
from pipeline.settings import Settings
from pipeline.tables.fleet import GroupState
from pipeline.tables.slices import AttemptEnd
from workers.backends.protocol import Engine, EngineState
from workers.drain import Drain
from workers.fleet import GroupCondition, GroupIdentity, report
from workers.held_slices import HeldSlice, HeldSlices
from workers.readiness import Readiness
from workers.recorder import Recorder
from workers.retries import TRANSIENT, Outage
from workers.threads import GuardedThread

log = structlog.get_logger(__name__)

#: How often the engine's state is looked at, in seconds; a change is told at once.
_LOOK_SECONDS: Final = 0.25
#: Renewals within one lease.
_BEATS_PER_LEASE: Final = 4

_GROUP_STATES: Final = {
    EngineState.STARTING: GroupState.STARTING,
    EngineState.READY: GroupState.READY,
    EngineState.RESTARTING: GroupState.RESTARTING,
    EngineState.DEGRADED: GroupState.DEGRADED,
    EngineState.STOPPED: GroupState.DEGRADED,
}


class Heartbeat:
    """One thread. While SQL is away it goes on trying, and the group goes on with what it has."""

    def __init__(
        self,
        identity: GroupIdentity,
        engine: Engine,
        held_slices: HeldSlices,
        recorder: Recorder,
        database: Database,
        settings: Settings,
        *,
        drain: Drain,
        readiness: Readiness,
        on_unable: Callable[[], None],
        on_failure: Callable[[], None],
    ) -> None:
        """`on_unable` is called again and again while the engine can't go on: nothing may be held."""
        self._identity = identity
        self._engine = engine
        self._held_slices = held_slices
        self._recorder = recorder
        self._database = database
        self._lease_seconds = settings.lease_seconds
        self._drain = drain
        self._readiness = readiness
        self._on_unable = on_unable
        self._is_stopping = threading.Event()
        self._outage = Outage("renewing leases")
        self._thread = GuardedThread("heartbeat", self._run, on_failure)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_stopping.set()
        self._thread.join()

    def _run(self) -> None:
        told, due = None, 0.0
        while not self._is_stopping.wait(_LOOK_SECONDS):
            condition = condition_of(self._engine, self._drain.state)
            self._readiness.saw(condition.state, condition.reason)
            if condition.state is GroupState.DEGRADED:
                self._on_unable()
            if condition.state is not told or time.monotonic() >= due:
                is_heard = self._beat(condition)
                told = condition.state
                wait = self._lease_seconds / _BEATS_PER_LEASE if is_heard else self._outage.seconds_to_retry
                due = time.monotonic() + wait

    def _beat(self, condition: GroupCondition) -> bool:
        held = self._held_slices.all()
        try:
            with self._database.begin() as conn:
                renewal = renew_leases(conn, self._identity.id, [one.claimed for one in held], self._lease_seconds)
                is_drain_wanted = report(conn, self._identity, condition)
        except TRANSIENT as error:
            self._outage.failed(error)
            return False
        self._outage.succeeded()
        self._readiness.renewed()
        self._drain.want(is_drain_wanted)
        self._heed(held, renewal)
        return True

    def _heed(self, held: list[HeldSlice], renewal: Renewal) -> None:
        """Stop working on slices that were lost, and on batches that were cancelled or whose window has passed."""
        for one in held:
            slice_id = one.claimed.id
            if slice_id not in renewal.held:
                log.warning("a slice was lost", **one.claimed.ids)
                self._engine.abort(self._held_slices.end(one, AttemptEnd.LOST))
            elif slice_id in renewal.ending:
                kind = renewal.ending[slice_id]
                waiting, running = self._held_slices.end_early(one, kind)
                if waiting or running:
                    log.info("a batch ends early", **one.claimed.ids, outcome=kind.value)
                self._recorder.add(one, waiting, kind)
                self._engine.abort(running)


def condition_of(engine: Engine, drain_state: GroupState | None = None) -> GroupCondition:
    """How a group is, by its engine, and by how far it has drained if it was asked to."""
    health, load = engine.health(), engine.load()
    state = _GROUP_STATES[health.state]
    if state is GroupState.READY and drain_state is not None:
        state = drain_state
    return GroupCondition(
        state=state,
        reason=health.reason,
        rank_pids=health.rank_pids,
        info={
            "kv_tokens": load.num_kv_tokens,
            "kv_tokens_used": load.num_kv_tokens_used,
            "running": load.num_running,
            "waiting": load.num_waiting,
            "restarts": health.num_restarts,
            # What `auto` came to.
            **({} if health.dtype is None else {"dtype": health.dtype}),
        },
    )
