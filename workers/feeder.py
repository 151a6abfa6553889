"""Puts requests into the engine, in planned order, as there is room for them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import Final

from pipeline.jobs.claiming import PlannedRequest
from pipeline.jobs.waste import WastePart
from pipeline.tables.rates import WasteCause
from workers.backends.protocol import Engine, EngineRequest, EngineState
from workers.held_slices import HeldSlices, InFlight
from workers.partial_outputs import decode_parts
from workers.threads import GuardedThread

_LONGEST_WAIT: Final = 0.25
#: How soon an engine that is back gets something to do, in seconds.
_RESTART_WAIT: Final = 0.05


class Feeder:
    """One thread; feeds nothing while the engine is being replaced."""

    def __init__(self, engine: Engine, held_slices: HeldSlices, on_failure: Callable[[], None]) -> None:
        self._engine = engine
        self._held_slices = held_slices
        self._is_stopping = threading.Event()
        self._thread = GuardedThread("feeder", self._run, on_failure)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_stopping.is_set():
            if self._engine.health().state is not EngineState.READY:
                self._is_stopping.wait(_RESTART_WAIT)
            elif (request := self._held_slices.take_next(_LONGEST_WAIT)) is not None:
                self._engine.submit(_engine_request(request))


def _engine_request(entered: InFlight) -> EngineRequest:
    request = entered.request
    partial = decode_parts(request)
    if partial is not None:
        # Known, but not in the cache of this engine.
        entered.held.waste.add(WastePart(WasteCause.RECOMPUTED, partial.num_tokens))
    return EngineRequest(
        id=entered.id,
        prompt_token_ids=request.prompt_token_ids,
        params=request.params,
        seed=seed_of(request),
        cache_salt=entered.held.claimed.tenant_id,
        partial=partial,
    )


def seed_of(request: PlannedRequest) -> int:
    """Its own seed, or one derived from the request, so that a second attempt repeats the first."""
    if request.params.seed is not None:
        return request.params.seed
    digest = hashlib.blake2b(f"request:{request.id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
