"""What came to nothing of the work at a held slice, until SQL is told: with an outcome, or when it is given up."""

from __future__ import annotations

import threading

from pipeline.jobs.recording import RequestOutcome
from pipeline.jobs.waste import WastePart
from pipeline.tables.rates import WasteCause
from workers.backends.protocol import Outcome


class WasteTally:
    """Sums by cause. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: dict[WasteCause, WastePart] = {}

    def add(self, part: WastePart) -> None:
        if not part.num_tokens and not part.engine_ms:
            return
        with self._lock:
            before = self._parts.get(part.cause)
            self._parts[part.cause] = part if before is None else _sum(before, part)

    def take(self) -> tuple[WastePart, ...]:
        """All that was added since this was last asked."""
        with self._lock:
            parts, self._parts = tuple(self._parts.values()), {}
        return parts


def wasted(cause: WasteCause, outcome: Outcome) -> WastePart:
    """What was computed for a request without an answer, and that no other attempt goes on from."""
    kept = outcome.partial
    num_kept, ms_kept = (0, 0) if kept is None else (kept.num_tokens, kept.engine_ms)
    num_prompt_tokens = outcome.num_prompt_tokens - outcome.num_cached_tokens
    return WastePart(
        cause,
        num_prompt_tokens + max(0, outcome.num_completion_tokens - num_kept),
        max(0, outcome.engine_ms - ms_kept),
    )


def too_late(outcome: RequestOutcome) -> list[WastePart]:
    """What was computed for an outcome whose lease was lost before it could be recorded."""
    parts = list(outcome.waste)
    if (usage := outcome.usage) is not None:
        num_tokens = usage.num_uncached_tokens + usage.num_completion_tokens
        parts.append(WastePart(WasteCause.LOST_LEASE, num_tokens, usage.engine_ms))
    return parts


def _sum(one: WastePart, other: WastePart) -> WastePart:
    engine_ms = None
    if one.engine_ms is not None or other.engine_ms is not None:
        engine_ms = (one.engine_ms or 0) + (other.engine_ms or 0)
    return WastePart(one.cause, one.num_tokens + other.num_tokens, engine_ms)
