"""What a group's running requests have come to, on its way into SQL, and what other attempts have left there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import msgspec
import structlog

from pipeline.jobs.claiming import PlannedRequest
from pipeline.jobs.partial_outputs import OutputPart
from workers.backends.protocol import Partial
from workers.held_slices import HeldSlice, InFlight

log = structlog.get_logger(__name__)

#: Tokens of one request, and seconds, that are not in SQL at most before they are written. With what its engine has not
#: reported and what is on its way, a group that dies loses fewer than 64 tokens of each request.
UNSAVED_TOKENS: Final = 32
UNSAVED_SECONDS: Final = 1.0

#: Of the parts' content; what has another one is not gone on from.
_VERSION: Final = 1
_DECODER: Final = msgspec.msgpack.Decoder(tuple[int, Partial])


def encode_part(partial: Partial) -> bytes:
    return msgspec.msgpack.encode((_VERSION, partial))


def decode_parts(request: PlannedRequest) -> Partial | None:
    """What was generated of a request; None if nothing was, or nothing that this version can read."""
    whole: Partial | None = None
    try:
        for part in request.output_parts:
            version, partial = _DECODER.decode(part)
            if version != _VERSION:
                raise ValueError(f"version {version}")
            whole = partial if whole is None else whole.joined(partial)
    except (msgspec.DecodeError, ValueError):
        log.warning("a partial output can't be read; the request begins anew", request=request.id)
        return None
    return whole


@dataclass(eq=False, slots=True)
class _Unsaved:
    held: HeldSlice
    #: Tokens of the request that are in SQL.
    position: int
    partial: Partial | None = None
    since: float = 0.0


class UnsavedOutputs:
    """By request: what its engine has reported and is not in SQL. The recorder thread's own."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._requests: dict[int, _Unsaved] = {}

    def add(self, running: InFlight, partial: Partial) -> None:
        unsaved = self._requests.get(running.request.id)
        if unsaved is None or unsaved.held is not running.held:
            unsaved = _Unsaved(running.held, running.request.num_saved_tokens)
            self._requests[running.request.id] = unsaved
        if unsaved.partial is None:
            unsaved.partial, unsaved.since = partial, self._clock()
        else:
            unsaved.partial = unsaved.partial.joined(partial)

    def forget(self, request_id: int) -> None:
        """It has an outcome."""
        self._requests.pop(request_id, None)

    def is_due(self) -> bool:
        oldest = self._clock() - UNSAVED_SECONDS
        return any(
            unsaved.partial is not None and (unsaved.partial.num_tokens >= UNSAVED_TOKENS or unsaved.since <= oldest)
            for unsaved in self._requests.values()
        )

    def parts(self) -> list[OutputPart]:
        """All of it. What belongs to slices that the group holds no more is forgotten."""
        self._requests = {
            request_id: unsaved for request_id, unsaved in self._requests.items() if unsaved.held.end is None
        }
        return [
            OutputPart(
                request_id,
                unsaved.held.claimed,
                unsaved.position,
                unsaved.partial.num_tokens,
                encode_part(unsaved.partial),
            )
            for request_id, unsaved in self._requests.items()
            if unsaved.partial is not None
        ]

    def saved(self, parts: Iterable[OutputPart]) -> None:
        for part in parts:
            unsaved = self._requests[part.request_id]
            unsaved.position, unsaved.partial = part.position + part.num_tokens, None
