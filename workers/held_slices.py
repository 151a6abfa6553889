"""The slices that a group holds, and where each of their requests is: waiting, in the engine, or answered.

                  hold                take_next               settle                recorded
    (claimed) ----------> waiting ----------------> in flight --------> unrecorded ----------> (has an outcome)
                            ^                          |
                            '------- put_back ---------'   the engine crashed, or gave it back

A slice ends when all of its requests have an outcome (finished), its lease is another's (lost), or the group gave it
back (returned). One lock guards all of it; nothing here waits for the engine or for SQL.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from pipeline.jobs.claiming import ClaimedSlice, PlannedRequest
from pipeline.tables.requests import OutcomeKind
from pipeline.tables.slices import AttemptEnd
from workers.attempt_trace import AttemptTrace
from workers.waste import WasteTally

#: Engine crashes from which on a request is suspected to be their cause, and runs alone.
SUSPECT_EXPOSURES: Final = 2

#: Slices that are held whatever is in them, so that the engine never waits between two; and slices that may be on
#: their way in at once, since nobody knows yet how much they are.
_SLICES_AHEAD: Final = 3


@dataclass(eq=False, slots=True)
class HeldSlice:
    """A claimed slice and what became of it so far."""

    claimed: ClaimedSlice
    #: In planned order.
    waiting: deque[PlannedRequest]
    #: Those of the waiting that run alone.
    suspects: deque[PlannedRequest]
    #: Set where the slice's batch ends early: the outcome of whatever is not answered yet.
    ending: OutcomeKind | None = None
    end: AttemptEnd | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    num_succeeded: int = 0
    num_unsuccessful: int = 0
    num_completion_tokens: int = 0
    #: Told to SQL with the next outcome, or when the slice is returned.
    waste: WasteTally = field(default_factory=WasteTally)
    #: None where traces are off.
    trace: AttemptTrace | None = None


@dataclass(eq=False, slots=True)
class InFlight:
    """A request in the engine."""

    id: str
    held: HeldSlice
    request: PlannedRequest
    is_alone: bool

    @property
    def num_sequences(self) -> int:
        return self.request.params.n


class HeldSlices:
    """Thread-safe. `max_sequences` bounds what is in the engine, waiting or running.

    `max_slices` are held at most. Beyond the first few, slices are taken in only while the sequences that have no
    outcome are fewer than the engine is given, and their tokens fewer than its cache holds: a group fills its engine
    with many small slices, and hoards no large ones that another group could work on.
    """

    def __init__(
        self, max_slices: int, max_sequences: int, on_end: Callable[[AttemptEnd], None] = lambda end: None
    ) -> None:
        """`on_end` is told of each slice that ends; it must not come back here."""
        self._on_end = on_end
        self._max_slices = max_slices
        self._max_sequences = max_sequences
        self._max_tokens: int | None = None
        #: Of requests that wait or are in the engine.
        self._num_held_sequences = 0
        self._num_held_tokens = 0
        self._num_reserved = 0
        self._changed = threading.Condition()
        self._slices: dict[int, HeldSlice] = {}  # in the order of their claims
        self._in_flight: dict[str, InFlight] = {}
        self._num_sequences = 0
        self._num_unrecorded = 0
        self._runs_alone = False
        self._is_closed = False
        self._is_paused = False
        self._feeds = True

    def limit_tokens(self, max_tokens: int) -> None:
        """How many tokens the engine's cache holds, which is known once it has started."""
        with self._changed:
            self._max_tokens = max_tokens

    # --- slices

    @property
    def num_wanted(self) -> int:
        """How many slices to hold and to claim now, those that are held among them; 0 where there is no room."""
        with self._changed:
            if self._is_closed or self._is_paused or not self._has_room():
                return 0
            return min(self._max_slices, len(self._slices) + _SLICES_AHEAD)

    def reserve(self, timeout: float) -> bool:
        """Room for one slice that is about to be claimed, as soon as there is some; False after `timeout` seconds.

        Is followed by `hold` or `release`.
        """
        with self._changed:
            may_end = self._changed.wait_for(lambda: self._is_closed or self._is_paused or self._has_room(), timeout)
            if not may_end or self._is_closed or self._is_paused:
                return False
            self._num_reserved += 1
            return True

    def release(self) -> None:
        """Nothing was claimed for a reservation."""
        with self._changed:
            self._num_reserved -= 1
            self._changed.notify_all()

    def hold(
        self, claimed: ClaimedSlice, requests: Sequence[PlannedRequest], trace: AttemptTrace | None = None
    ) -> HeldSlice | None:
        """Take a claimed slice in, for a reservation. None where the group takes no more: the caller gives it back."""
        held = HeldSlice(
            claimed,
            deque(request for request in requests if request.num_crash_exposures < SUSPECT_EXPOSURES),
            deque(request for request in requests if request.num_crash_exposures >= SUSPECT_EXPOSURES),
            trace=trace,
        )
        with self._changed:
            self._num_reserved -= 1
            if self._is_closed or self._is_paused:
                if trace is not None:
                    trace.end(AttemptEnd.RETURNED, 0, 0)
                return None
            self._slices[claimed.id] = held
            self._add_work(requests)
            self._changed.notify_all()
        return held

    @property
    def num_held(self) -> int:
        with self._changed:
            return len(self._slices)

    @property
    def num_unrecorded(self) -> int:
        with self._changed:
            return self._num_unrecorded

    def all(self) -> list[HeldSlice]:
        with self._changed:
            return list(self._slices.values())

    def find(self, slice_id: int) -> HeldSlice | None:
        with self._changed:
            return self._slices.get(slice_id)

    def end(self, held: HeldSlice, end: AttemptEnd) -> list[str]:
        """Forget a slice; returns the engine's ids of its requests that are still in the engine."""
        with self._changed:
            if held.end is not None:
                return []
            del self._slices[held.claimed.id]
            self._drop_waiting(held)
            held.end = end
            self._on_end(end)
            if held.trace is not None:
                held.trace.end(end, held.num_succeeded, held.num_unsuccessful)
            held.ended.set()
            self._changed.notify_all()
            return self._ids_of(held)

    def end_early(self, held: HeldSlice, outcome: OutcomeKind) -> tuple[list[PlannedRequest], list[str]]:
        """The slice's batch ends: what waits, which counts as unrecorded now, and the engine's ids of what runs."""
        with self._changed:
            if held.end is not None or held.ending is not None:
                return [], []
            held.ending = outcome
            stopped = self._drop_waiting(held)
            self._num_unrecorded += len(stopped)
            return stopped, self._ids_of(held)

    def close(self) -> None:
        """Hold no new slices and put nothing more into the engine."""
        with self._changed:
            self._is_closed = True
            self._feeds = False
            self._changed.notify_all()

    def pause(self) -> None:
        """The same for a while."""
        with self._changed:
            self._is_paused = True
            self._feeds = False
            self._changed.notify_all()

    def resume(self) -> None:
        with self._changed:
            self._is_paused = False
            self._feeds = not self._is_closed
            self._changed.notify_all()

    @property
    def is_paused(self) -> bool:
        with self._changed:
            return self._is_paused

    # --- requests

    def take_next(self, timeout: float) -> InFlight | None:
        """The next request for the engine, as soon as there is one and room for it; None after `timeout` seconds.

        The oldest slice's first. A suspect goes when nothing else is in the engine, and nothing goes beside it.
        """
        with self._changed:
            if (request := self._next()) is None:
                self._changed.wait(timeout)
                request = self._next()
            return request

    def settle(self, engine_id: str) -> InFlight | None:
        """A request left the engine and counts as unrecorded. None where its slice is not the group's any more."""
        with self._changed:
            request = self._in_flight.pop(engine_id, None)
            if request is None:
                return None
            self._num_sequences -= request.num_sequences
            self._drop_work([request.request])
            if request.held.trace is not None:
                request.held.trace.left()
            if request.is_alone:
                self._runs_alone = False
            self._changed.notify_all()
            if request.held.end is not None:
                return None
            self._num_unrecorded += 1
            return request

    def find_lost(self, engine_id: str) -> InFlight | None:
        """A request that is in the engine still, of a slice that was lost."""
        with self._changed:
            running = self._in_flight.get(engine_id)
            return running if running is not None and running.held.end is AttemptEnd.LOST else None

    def put_back(self, held: HeldSlice, requests: Sequence[PlannedRequest]) -> Sequence[PlannedRequest]:
        """Unrecorded requests wait again, before all others of their slice.

        Returns those that don't, since the batch ends early: they stay unrecorded.
        """
        with self._changed:
            if held.end is None and held.ending is not None:
                return requests
            self._num_unrecorded -= len(requests)
            if held.end is None:
                self._add_work(requests)
                for request in sorted(requests, key=lambda request: request.id, reverse=True):
                    is_suspect = request.num_crash_exposures >= SUSPECT_EXPOSURES
                    (held.suspects if is_suspect else held.waiting).appendleft(request)
            self._changed.notify_all()
            return ()

    def recorded(self, num_requests: int) -> None:
        """So many requests are not unrecorded any more."""
        with self._changed:
            self._num_unrecorded -= num_requests
            self._changed.notify_all()

    # --- how it stands

    def expects_outcomes(self) -> bool:
        """Whether the engine will report something, or is about to get something to do."""
        with self._changed:
            return bool(self._in_flight) or (
                self._feeds and any(held.waiting or held.suspects for held in self._slices.values())
            )

    def find_in_flight(self, engine_id: str) -> InFlight | None:
        """A request in the engine, of a slice that the group holds."""
        with self._changed:
            running = self._in_flight.get(engine_id)
            return None if running is None or running.held.end is not None else running

    def in_flight_ids(self) -> list[str]:
        with self._changed:
            return list(self._in_flight)

    def wait_until_settled(self, timeout: float) -> bool:
        """Wait until nothing is in the engine and everything that left it is recorded."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._in_flight and self._num_unrecorded == 0, timeout)

    # --- under the lock

    def _has_room(self) -> bool:
        num_slices = len(self._slices) + self._num_reserved
        if num_slices >= self._max_slices:
            return False
        return num_slices < _SLICES_AHEAD or (
            self._num_reserved < _SLICES_AHEAD
            # What was reserved brings one at least.
            and self._num_held_sequences + self._num_reserved < self._max_sequences
            and (self._max_tokens is None or self._num_held_tokens < self._max_tokens)
        )

    def _add_work(self, requests: Iterable[PlannedRequest]) -> None:
        for request in requests:
            self._num_held_sequences += request.params.n
            self._num_held_tokens += request.num_expected_tokens

    def _drop_work(self, requests: Iterable[PlannedRequest]) -> None:
        for request in requests:
            self._num_held_sequences -= request.params.n
            self._num_held_tokens -= request.num_expected_tokens

    def _drop_waiting(self, held: HeldSlice) -> list[PlannedRequest]:
        dropped = [*held.waiting, *held.suspects]
        held.waiting.clear()
        held.suspects.clear()
        self._drop_work(dropped)
        return dropped

    def _next(self) -> InFlight | None:
        if not self._feeds or self._runs_alone:
            return None
        suspect = next((held for held in self._slices.values() if held.suspects), None)
        if suspect is not None:
            return None if self._in_flight else self._enter(suspect, suspect.suspects.popleft(), is_alone=True)
        for held in self._slices.values():
            if held.waiting:
                # One always fits, so that a request with more sequences than the bound is not stuck.
                fits = self._num_sequences + held.waiting[0].params.n <= self._max_sequences
                if fits or not self._in_flight:
                    return self._enter(held, held.waiting.popleft(), is_alone=False)
                return None
        return None

    def _enter(self, held: HeldSlice, request: PlannedRequest, *, is_alone: bool) -> InFlight:
        # The epoch tells this attempt's answer from that of one before, which may still be on its way.
        entered = InFlight(f"{request.id}.{held.claimed.lease_epoch}", held, request, is_alone)
        self._in_flight[entered.id] = entered
        if held.trace is not None:
            held.trace.entered()
        self._num_sequences += entered.num_sequences
        self._runs_alone = is_alone
        return entered

    def _ids_of(self, held: HeldSlice) -> list[str]:
        return [request.id for request in self._in_flight.values() if request.held is held]
