"""Whether a group can do its work: not that its process exists, but that its engine moves and its leases are kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Final

from sqlalchemy import Engine as Database
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from pipeline.settings import Settings
from pipeline.tables.fleet import GroupState
from workers.backends.protocol import Engine

#: Whoever asks must know within 2 s.
_DATABASE_SECONDS: Final = 1.8
#: That wait for a database that hangs; they end when it does, and keep no process from its end.
_MAX_THREADS: Final = 2
#: Without a step for so long, in seconds, something is wrong that the engine itself has not noticed.
_LEAST_STEP_SECONDS: Final = 30.0


class Readiness:
    """What the heartbeat has seen, and a look at the database for whoever asks. Thread-safe."""

    def __init__(
        self,
        engine: Engine,
        database: Database,
        settings: Settings,
        *,
        has_work: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`has_work` says whether requests are in the engine."""
        self._engine = engine
        self._database = database
        self._lease_seconds = settings.lease_seconds
        self._step_seconds = max(_LEAST_STEP_SECONDS, settings.step_seconds)
        self._has_work = has_work
        self._clock = clock
        self._lock = threading.Lock()
        self._state = GroupState.STARTING
        self._reason: str | None = None
        self._num_steps = 0
        self._looked_at = self._moved_at = self._renewed_at = clock()
        self._free_threads = threading.Semaphore(_MAX_THREADS)

    # --- told by the heartbeat

    def saw(self, state: GroupState, reason: str | None = None) -> None:
        """How the group is, at this moment."""
        num_steps, has_work, now = self._engine.health().num_steps, self._has_work(), self._clock()
        with self._lock:
            if num_steps != self._num_steps or not has_work:
                self._moved_at = now
            self._state, self._reason, self._num_steps, self._looked_at = state, reason, num_steps, now

    def renewed(self) -> None:
        """SQL has taken the leases and the state of the group."""
        with self._lock:
            self._renewed_at = self._clock()

    # --- asked by whoever watches

    def seconds_since_renewal(self) -> float:
        with self._lock:
            return self._clock() - self._renewed_at

    def reasons(self) -> list[str]:
        """Why the group can't do its work, in words; none if it can. Takes less than 2 s."""
        return [*self._seen(), *self._asked()]

    def _seen(self) -> Iterator[str]:
        with self._lock:
            now = self._clock()
            if self._state is not GroupState.READY:
                yield f"the group is {self._state.value}" + (f": {self._reason}" if self._reason else "")
                if self._state is GroupState.STARTING:  # nothing has been looked at so far
                    return
            if (seconds := now - self._moved_at) > self._step_seconds:
                yield f"the engine has work, and has made no step for {seconds:.0f} s"
            if (seconds := now - self._renewed_at) > self._lease_seconds:
                yield f"leases were last renewed {seconds:.0f} s ago"
            elif (seconds := now - self._looked_at) > self._lease_seconds:
                yield f"the heartbeat has stood still for {seconds:.0f} s"

    def _asked(self) -> Iterator[str]:
        if not self._free_threads.acquire(blocking=False):
            yield "PostgreSQL has not answered those who asked before"
            return
        answers: SimpleQueue[bool] = SimpleQueue()
        threading.Thread(target=self._ask_database, args=(answers,), name="readyz", daemon=True).start()
        try:
            if not answers.get(timeout=_DATABASE_SECONDS):
                yield "PostgreSQL is not reachable"
        except Empty:
            yield f"PostgreSQL gave no answer within {_DATABASE_SECONDS:g} s"

    def _ask_database(self, answers: SimpleQueue[bool]) -> None:
        try:
            with self._database.connect() as conn:
                conn.execute(text("SELECT 1"))
        except SQLAlchemyError:
            answers.put(False)
        else:
            answers.put(True)
        finally:
            self._free_threads.release()
