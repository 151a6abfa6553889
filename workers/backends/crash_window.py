"""How often an engine crashed of late: how long to wait before the next start, and when to give up."""

from __future__ import annotations

from collections import deque

#: Wait before a restart: none after the first crash of the window, then this, doubling up to the largest, in seconds.
FIRST_BACKOFF_SECONDS = 0.5
LARGEST_BACKOFF_SECONDS = 30.0


class CrashWindow:
    """The crashes of the last `seconds`."""

    def __init__(self, max_crashes: int, seconds: float) -> None:
        self._max_crashes = max_crashes
        self._seconds = seconds
        self._crashes: deque[float] = deque()

    def __len__(self) -> int:
        return len(self._crashes)

    def add(self, now: float) -> None:
        """There was one at `now`, in seconds; those that are too long ago by then don't count any more."""
        self._crashes.append(now)
        while now - self._crashes[0] > self._seconds:
            self._crashes.popleft()

    @property
    def is_full(self) -> bool:
        return len(self._crashes) >= self._max_crashes

    @property
    def backoff_seconds(self) -> float:
        doublings = len(self._crashes) - 2
        return min(FIRST_BACKOFF_SECONDS * 2.0**doublings, LARGEST_BACKOFF_SECONDS) if doublings >= 0 else 0.0
