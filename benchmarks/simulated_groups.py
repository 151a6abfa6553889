"""Groups without engines: the real claim, recording and bookkeeping of held slices, in simulated time.

A simulated engine runs up to `SEQUENCES` requests at once, in steps. A step takes `STEP_SECONDS`, which reading the
weights takes, and a little more for each sequence; prompts take time of their own. So an engine is the more efficient
the fuller it is, and a request takes longer in a full one, as on a GPU.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import Connection, Engine

from pipeline.billing.rating import TokenUsage
from pipeline.jobs.claiming import ClaimedSlice, PlannedRequest, load_requests
from pipeline.jobs.recording import RequestOutcome, record_outcomes
from pipeline.tables.requests import OutcomeKind
from pipeline.tables.slices import AttemptEnd
from workers.held_slices import HeldSlices, InFlight

SEQUENCES: Final = 256
STEP_SECONDS: Final = 0.012
STEP_SECONDS_PER_SEQUENCE: Final = 0.000_025
SECONDS_PER_PROMPT_TOKEN: Final = 0.000_03

#: As groups have it by default.
_MAX_SLICES: Final = 256
_FEED_AHEAD: Final = 1.25
_RECORD_REQUESTS: Final = 64

Claim = Callable[[Connection, str, ClaimedSlice | None], ClaimedSlice | None]


class Watch:
    """Who was served how much and when, and the most slices that each tenant had at work at once."""

    def __init__(self) -> None:
        #: Of each recording: seconds, tenant, batch, weighted tokens, requests.
        self.served: list[tuple[float, str, str, int, int]] = []
        self.most_at_work: Counter[str] = Counter()
        #: Weighted tokens.
        self.total = 0
        self._at_work: Counter[str] = Counter()

    def claimed(self, claimed: ClaimedSlice) -> None:
        self._at_work[claimed.tenant_id] += 1
        most = max(self.most_at_work[claimed.tenant_id], self._at_work[claimed.tenant_id])
        self.most_at_work[claimed.tenant_id] = most

    def recorded(self, seconds: float, claimed: ClaimedSlice, usages: Sequence[TokenUsage], *, is_done: bool) -> None:
        # As the settings have it where nothing is cached.
        cost = sum(usage.num_prompt_tokens + 2 * usage.num_completion_tokens for usage in usages)
        self.total += cost
        self.served.append((seconds, claimed.tenant_id, claimed.batch_id, cost, len(usages)))
        if is_done:
            self._at_work[claimed.tenant_id] -= 1


@dataclass(slots=True)
class _SimulatedEngine:
    """Requests in steps; `steps` counts them since the beginning, in parts of one."""

    num_sequences: int
    steps: float = 0.0
    moment: float = 0.0
    #: Seconds that prompts take before the next step.
    debt: float = 0.0
    running: list[tuple[float, int, InFlight]] = field(default_factory=list)
    waiting: deque[tuple[int, InFlight]] = field(default_factory=deque)
    num_entered: int = 0

    @property
    def _step_seconds(self) -> float:
        return STEP_SECONDS + STEP_SECONDS_PER_SEQUENCE * len(self.running)

    def add(self, request: InFlight, num_output_tokens: int) -> None:
        self.waiting.append((num_output_tokens, request))
        self._start()

    def next_end(self) -> float | None:
        if not self.running:
            return None
        return self.moment + self.debt + (self.running[0][0] - self.steps) * self._step_seconds

    def advance(self, moment: float) -> list[InFlight]:
        """Go on to this moment, which is no later than `next_end`; returns what has ended."""
        seconds = moment - self.moment
        self.moment = moment
        prompts = min(self.debt, seconds)
        self.debt -= prompts
        if self.running:
            self.steps += (seconds - prompts) / self._step_seconds
        ended = []
        while self.running and self.running[0][0] <= self.steps + 1e-6:
            ended.append(heapq.heappop(self.running)[2])
        self._start()
        return ended

    def _start(self) -> None:
        while self.waiting and len(self.running) < self.num_sequences:
            num_steps, request = self.waiting.popleft()
            self.num_entered += 1
            self.debt += len(request.request.prompt_token_ids) * SECONDS_PER_PROMPT_TOKEN
            heapq.heappush(self.running, (self.steps + num_steps, self.num_entered, request))


class SimulatedGroup:
    """What `workers/group.py` does with threads, done step by step."""

    def __init__(self, name: str, database: Engine, claim: Claim, watch: Watch, num_sequences: int) -> None:
        self.name = name
        self._watch = watch
        self._database = database
        self._claim = claim
        self._held = HeldSlices(_MAX_SLICES, int(num_sequences * _FEED_AHEAD))
        self._engine = _SimulatedEngine(num_sequences)
        self._last: ClaimedSlice | None = None
        self._unrecorded: list[InFlight] = []

    def next_end(self) -> float | None:
        return self._engine.next_end()

    def go_on(self, moment: float) -> None:
        """Go on to a moment: record what has ended, claim what there is room for, and run it."""
        for ended in self._engine.advance(moment):
            self._held.settle(ended.id)
            self._unrecorded.append(ended)
        if self._unrecorded and self._is_time_to_record():
            self._record(moment)
        while self._held.reserve(timeout=0):
            with self._database.begin() as conn:
                claimed = self._claim(conn, self.name, self._last)
                requests = load_requests(conn, claimed) if claimed else []
            if claimed is None:
                self._held.release()
                break
            self._last = claimed
            self._watch.claimed(claimed)
            self._held.hold(claimed, requests)
        while (request := self._held.take_next(timeout=0)) is not None:
            self._engine.add(request, self._num_output_tokens(request.request))

    def _is_time_to_record(self) -> bool:
        """As often as a group that is busy; or where a slice would be done by it."""
        if len(self._unrecorded) >= _RECORD_REQUESTS:
            return True
        unanswered = [self._held.find_in_flight(one) for one in self._held.in_flight_ids()]
        unfinished = {one.held for one in unanswered if one is not None}
        return any(not one.held.waiting and one.held not in unfinished for one in self._unrecorded)

    def _record(self, moment: float) -> None:
        outcomes = [self._outcome(one) for one in self._unrecorded]
        with self._database.begin() as conn:
            recorded = record_outcomes(conn, outcomes)
        self._held.recorded(len(outcomes))
        for held in {one.held for one in self._unrecorded}:
            usages = [one.usage for one in outcomes if one.claimed is held.claimed and one.usage is not None]
            is_done = held.claimed.id in recorded.done
            self._watch.recorded(moment, held.claimed, usages, is_done=is_done)
            if is_done:
                self._held.end(held, AttemptEnd.FINISHED)
        self._unrecorded.clear()

    def _outcome(self, ended: InFlight) -> RequestOutcome:
        request = ended.request
        usage = TokenUsage(len(request.prompt_token_ids), 0, self._num_output_tokens(request))
        return RequestOutcome(
            request.id, request.custom_id, ended.held.claimed, OutcomeKind.SUCCEEDED, body="{}", usage=usage
        )

    def _num_output_tokens(self, request: PlannedRequest) -> int:
        """Any number up to max_tokens, the same whenever it is asked for."""
        return random.Random(request.custom_id).randint(1, request.params.max_tokens)


def simulate(
    groups: Sequence[SimulatedGroup],
    *,
    arrivals: Sequence[tuple[float, Callable[[], None]]] = (),
    until: Callable[[float], bool],
) -> float:
    """Run until this holds, or nothing is left to do; returns the simulated seconds. `arrivals` happen at theirs."""
    pending = deque(sorted(arrivals, key=lambda arrival: arrival[0]))
    moment = 0.0
    for group in groups:
        group.go_on(moment)
    while not until(moment):
        ends = [(end, number) for number, group in enumerate(groups) if (end := group.next_end()) is not None]
        if pending and (not ends or pending[0][0] <= min(ends)[0]):
            moment, arrive = pending.popleft()
            arrive()
            for group in groups:
                group.go_on(moment)
            continue
        if not ends:
            break
        moment, number = min(ends)
        groups[number].go_on(moment)
    return moment
