"""The requests that an engine has taken and not yet answered, and what its group has not yet asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator

import msgspec

from workers.backends.ends import count_end
from workers.backends.measures import Measures
from workers.backends.protocol import EngineRequest, Outcome, OutcomeStatus, Progress


class TakenRequests:
    """Not thread-safe. Outcomes are counted in `measures` as they are reported."""

    def __init__(self, measures: Measures) -> None:
        self._measures = measures
        self._requests: dict[str, EngineRequest] = {}  # in the order in which they came
        #: Those of them that run.
        self._admitted: set[str] = set()
        #: Those that the ranks were told to give up.
        self._aborting: set[str] = set()
        self._outcomes: deque[Outcome] = deque()
        self._progress: list[Progress] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[EngineRequest]:
        return iter(self._requests.values())

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    @property
    def num_admitted(self) -> int:
        return len(self._admitted)

    def add(self, request: EngineRequest) -> None:
        self._requests[request.id] = request

    def admit(self, ids: Collection[str]) -> None:
        """They run; those that are not here any more are left out."""
        self._admitted.update(self.known(ids))

    def known(self, ids: Collection[str]) -> list[str]:
        return [request_id for request_id in ids if request_id in self._requests]

    def advance(self, one: Progress) -> None:
        """Keep what was generated since, for whoever goes on with the request."""
        request = self._requests.get(one.id)
        if request is not None:
            partial = one.partial if request.partial is None else request.partial.joined(one.partial)
            self._requests[one.id] = msgspec.structs.replace(request, partial=partial)
            self._progress.append(one)

    # --- how requests end

    def report(self, outcome: Outcome) -> None:
        """Of a request that is not, or no longer, here."""
        self._outcomes.append(outcome)
        count_end(self._measures, outcome)

    def end(self, outcome: Outcome) -> None:
        """Report it and forget the request; nothing where that has ended already."""
        self._admitted.discard(outcome.id)
        self._aborting.discard(outcome.id)
        if (request := self._requests.pop(outcome.id, None)) is not None:
            if outcome.status in (OutcomeStatus.ABORTED, OutcomeStatus.CRASHED):
                outcome = msgspec.structs.replace(outcome, partial=request.partial)
            self.report(outcome)

    def expect_abort(self, ids: Collection[str]) -> None:
        """The ranks will report these as aborted; should they not live to do so, `lose_ranks` will."""
        self._aborting.update(ids)

    def abort(self, ids: Collection[str]) -> None:
        for request_id in ids:
            self.end(Outcome(id=request_id, status=OutcomeStatus.ABORTED))

    def abort_all(self) -> None:
        self.abort(list(self._requests))

    def lose_ranks(self, reason: str) -> None:
        """What was to be given up is aborted, what else ran has crashed, and what waited stays."""
        self.abort(list(self._aborting))
        self._crash(list(self._admitted), reason)

    def crash_all(self, reason: str) -> None:
        self._crash(list(self._requests), reason)

    def _crash(self, ids: Collection[str], reason: str) -> None:
        for request_id in ids:
            num_prompt_tokens = len(self._requests[request_id].prompt_token_ids)
            self.end(
                Outcome(
                    id=request_id,
                    status=OutcomeStatus.CRASHED,
                    num_prompt_tokens=num_prompt_tokens,
                    error_message=reason,
                )
            )

    # --- what the group takes

    @property
    def has_outcomes(self) -> bool:
        return bool(self._outcomes)

    def take_outcomes(self, max_outcomes: int) -> list[Outcome]:
        return [self._outcomes.popleft() for _ in range(min(max_outcomes, len(self._outcomes)))]

    def take_progress(self) -> list[Progress]:
        taken, self._progress = self._progress, []
        return taken
