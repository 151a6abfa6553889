"""Watching batches: live bars on a terminal, a line for each change elsewhere, or nothing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import Batch

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})

#: Seconds between two looks: short at first, for small batches, then twice as long each time.
_FIRST_SECONDS = 0.2
_LONGEST_SECONDS = 2.0
#: Time over which speed is measured, in seconds.
_SPEED_SECONDS = 60.0
#: A batch without news for so long is asked why, and then again so often, in seconds.
_WHY_SECONDS = 4.0


def status_of(batch: Batch) -> str:
    """For people: its status, and whether it is paused."""
    return f"{batch.status} (paused)" if getattr(batch, "pause_reason", None) else batch.status


@dataclass
class Watched:
    """A batch, and what can be said of how fast it is."""

    batch: Batch
    #: Why it waits, in the service's words; empty while it gets on.
    why: str = ""
    #: When the service expects it to be done, in Unix seconds.
    finish_at: int | None = None
    _seen: deque[tuple[float, int, int]] = field(default_factory=deque)
    _changed_at: float = 0.0

    def see(self, batch: Batch, now: float) -> None:
        """Take in how it is `now`, in seconds of any clock."""
        self.batch = batch
        counts, usage = batch.request_counts, batch.usage
        point = (now, (counts.completed + counts.failed) if counts else 0, usage.total_tokens if usage else 0)
        if not self._seen or point[1:] != self._seen[-1][1:]:
            self._changed_at, self.why = now, ""
        self._seen.append(point)
        while self._seen[0][0] < now - _SPEED_SECONDS:
            self._seen.popleft()

    def is_stuck(self, now: float) -> bool:
        """Whether somebody would want to know why nothing happens."""
        return self.batch.status in ("validating", "in_progress") and now - self._changed_at >= _WHY_SECONDS

    @property
    def has_ended(self) -> bool:
        return self.batch.status in ENDED

    @property
    def num_done(self) -> int:
        return self._seen[-1][1] if self._seen else 0

    @property
    def num_requests(self) -> int:
        counts = self.batch.request_counts
        return counts.total if counts else 0

    @property
    def tokens_per_second(self) -> float:
        return self._speed(2)

    def seconds_left(self, wall_clock: float) -> float | None:
        """By its speed, else as the service expects; `wall_clock` is in Unix seconds."""
        if self.has_ended or getattr(self.batch, "pause_reason", None):
            return None
        if (speed := self._speed(1)) > 0:
            return (self.num_requests - self.num_done) / speed
        return None if self.finish_at is None else max(0.0, self.finish_at - wall_clock)

    def _speed(self, column: int) -> float:
        if len(self._seen) < 2:
            return 0.0
        first, last = self._seen[0], self._seen[-1]
        return (last[column] - first[column]) / (last[0] - first[0]) if last[0] > first[0] else 0.0


class Display(Protocol):
    """Where it is shown."""

    def show(self, watched: Sequence[Watched]) -> None: ...
    def close(self) -> None: ...


class Silence:
    """Nobody watches."""

    def show(self, watched: Sequence[Watched]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class PlainLines:
    """A line for each batch whose status, or whose tenth of requests, is another than before."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._shown: dict[str, tuple[object, ...]] = {}

    def show(self, watched: Sequence[Watched]) -> None:
        for one in watched:
            tenth = one.num_done * 10 // one.num_requests if one.num_requests else 0
            state = (status_of(one.batch), tenth, one.why)
            if not one.has_ended and self._shown.get(one.batch.id) != state:
                self._shown[one.batch.id] = state
                self._write(line_of(one))

    def close(self) -> None:
        """Each line is written at once."""


def line_of(one: Watched) -> str:
    """`batch_… in_progress 12/40, 350 tokens/s, 1m20s left`."""
    parts = [f"{one.batch.id} {status_of(one.batch)}"]
    if one.num_requests:
        parts[0] += f" {one.num_done}/{one.num_requests}"
    return ", ".join([*parts, *details_of(one)])


def details_of(one: Watched) -> list[str]:
    """Its speed, the time left and why it waits, as far as anything is known."""
    from pipeline.cli.rendering import duration

    left = one.seconds_left(time.time())
    found = [f"{one.tokens_per_second:,.0f} tokens/s"] if one.tokens_per_second >= 0.5 else []
    found += [] if left is None else [f"{duration(left)} left"]
    return found + ([one.why.rstrip(".")] if one.why else [])


def watch_until_end(client: OpenAI, batches: Iterable[Batch], display: Display) -> list[Batch]:
    """The batches as they are when all of them have ended."""
    watched = [Watched(batch) for batch in batches]
    for one in watched:
        one.see(one.batch, time.monotonic())
    pause, asked_at = _FIRST_SECONDS, 0.0
    try:
        display.show(watched)
        while not all(one.has_ended for one in watched):
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_SECONDS)
            now = time.monotonic()
            for one in watched:
                if not one.has_ended:
                    one.see(client.batches.retrieve(one.batch.id), now)
            if not isinstance(display, Silence) and now - asked_at >= _WHY_SECONDS:
                asked_at = now
                for one in watched:
                    if one.is_stuck(now):
                        _ask_why(client, one)
            display.show(watched)
    finally:
        display.close()
    return [one.batch for one in watched]


def _ask_why(client: OpenAI, one: Watched) -> None:
    explained: Any = client.get(f"/batches/{quote(one.batch.id, safe='')}/explain", cast_to=object)
    found: Mapping[str, Any] = explained
    one.why = str(found["reasons"][0]["message"]) if found.get("reasons") else ""
    one.finish_at = found.get("estimated_finish")
