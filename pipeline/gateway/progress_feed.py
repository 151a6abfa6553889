"""What the open streams of one process show: one look into SQL every second for all of them together.

A database that is away costs the streams nothing but news: they stay open, and go on when it is back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from pipeline.gateway.errors import ApiError
from pipeline.jobs.progress import ENDED, BatchProgress, keys_that_are_over, read_progress
from pipeline.schemas.progress import ProgressObject
from pipeline.tables.session import connection
from pipeline.telemetry.logs import summarize_error
from pipeline.tenancy.keys import Principal

log = structlog.get_logger(__name__)

#: Streams that one key may have open with one process.
MAX_STREAMS_PER_KEY: Final = 20
#: A stream ends after so long, in seconds; its client opens another, and shows its key again.
LONGEST_STREAM: Final = 3600.0
#: Between two looks, in seconds.
_LOOK_SECONDS: Final = 1.0
#: A stream without news says so often that it is there, in seconds; what is in between closes silent connections.
_KEEP_ALIVE_SECONDS: Final = 15.0
#: Time over which the speed of a batch is measured, in seconds.
_SPEED_SECONDS: Final = 60.0
#: Tells a client to wait so long, in milliseconds, before it opens a stream again that broke.
_RETRY: Final = b"retry: 2000\n\n"


class ProgressFeed:
    """Belongs to the event loop of its process."""

    def __init__(self, look_seconds: float = _LOOK_SECONDS, keep_alive_seconds: float = _KEEP_ALIVE_SECONDS) -> None:
        self._look_seconds = look_seconds
        self._keep_alive_seconds = keep_alive_seconds
        self._watched: Counter[str] = Counter()
        self._keys: Counter[str] = Counter()
        self._found: dict[str, ProgressObject] = {}
        self._over: frozenset[str] = frozenset()
        self._speeds: dict[str, _Speed] = {}
        self._news = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._is_closed = False
        #: Looks into SQL so far.
        self.num_looks = 0

    @property
    def num_streams(self) -> int:
        return self._keys.total()

    def close(self) -> None:
        """End every stream, since the process is about to end; their clients open others elsewhere."""
        self._is_closed = True
        self._news.set()

    @contextmanager
    def place(self, caller: Principal) -> Iterator[None]:
        """For a stream, from before its batch is read: many may be asked for at once.

        Raises ApiError (429) where the key has as many streams open as it may.
        """
        key_id = caller.api_key_id
        if self._keys[key_id] >= MAX_STREAMS_PER_KEY:
            raise ApiError(
                429,
                f"This key has {MAX_STREAMS_PER_KEY} streams of events open, and may have no more. Close one, or watch "
                "several batches by polling.",
                kind="requests",
                code="too_many_streams",
                headers={"Retry-After": "5"},
            )
        self._keys[key_id] += 1
        try:
            yield
        finally:
            _take_one(self._keys, key_id)

    async def stream(
        self, first: BatchProgress, caller: Principal, last_event_id: str | None, seconds: float
    ) -> AsyncIterator[bytes]:
        """Events of one batch until it has ended, or for `seconds`, at the caller's `place`.

        `first` is how the batch is now.
        """
        batch_id, key_id = first.batch_id, caller.api_key_id
        end = time.monotonic() + seconds
        shown, status = last_event_id, ""
        self._open(first)
        try:
            yield _RETRY
            quiet_until = time.monotonic() + self._keep_alive_seconds
            while (now := self._found.get(batch_id)) is not None:
                news = self._news
                if now.event_id != shown:
                    kind = "progress" if status == _status_of(now) else "status"
                    yield _event(kind, now)
                    shown, status = now.event_id, _status_of(now)
                    quiet_until = time.monotonic() + self._keep_alive_seconds
                elif time.monotonic() >= quiet_until:
                    yield b": nothing new\n\n"
                    quiet_until = time.monotonic() + self._keep_alive_seconds
                is_over = self._is_closed or key_id in self._over or time.monotonic() >= end
                if now.status in ENDED or is_over:
                    return
                await _wait(news, min(quiet_until, end) - time.monotonic())
        finally:
            self._leave(batch_id)

    def _open(self, first: BatchProgress) -> None:
        self._watched[first.batch_id] += 1
        self._take({first.batch_id: first})
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())

    def _leave(self, batch_id: str) -> None:
        _take_one(self._watched, batch_id)
        if batch_id not in self._watched:
            self._found.pop(batch_id, None)
            self._speeds.pop(batch_id, None)

    async def _look(self) -> None:
        last_error: type[Exception] | None = None
        while self._watched and not self._is_closed:
            await asyncio.sleep(self._look_seconds)
            try:
                await self._look_once()
                last_error = None
            except Exception as error:  # whatever it is: without looks, streams would be silent for ever
                if type(error) is not last_error:  # said once, not every second
                    is_expected = isinstance(error, SQLAlchemyError)
                    log.log(
                        logging.WARNING if is_expected else logging.ERROR,
                        "streams of events have no news",
                        reason=summarize_error(error),
                        exc_info=None if is_expected else error,
                    )
                last_error = type(error)

    async def _look_once(self) -> None:
        watched = list(self._watched)
        found, self._over = await run_in_threadpool(look, watched, list(self._keys))
        self.num_looks += 1
        self._take(found)
        for batch_id in set(watched) - found.keys():
            self._found.pop(batch_id, None)  # its stream ends
        self._news.set()
        self._news = asyncio.Event()

    def _take(self, found: Mapping[str, BatchProgress]) -> None:
        for batch_id, progress in found.items():
            if batch_id in self._watched:  # else its last stream has ended meanwhile
                speed = self._speeds.setdefault(batch_id, _Speed())
                self._found[batch_id] = ProgressObject.of(progress, speed.seconds_left(progress, time.monotonic()))


class _Speed:
    """Of one batch: requests with an outcome, as they were at moments of the last minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def seconds_left(self, progress: BatchProgress, now: float) -> int | None:
        """`now` is in seconds."""
        self._seen.append((now, progress.num_finished))
        while self._seen[0][0] < now - _SPEED_SECONDS:
            self._seen.popleft()
        (began, num_then), num_left = self._seen[0], progress.num_requests - progress.num_finished
        num_finished = progress.num_finished - num_then
        if progress.has_ended or progress.pause_reason is not None or num_finished <= 0:
            return None
        return round(num_left * (now - began) / num_finished)


def look(batch_ids: Collection[str], key_ids: Collection[str]) -> tuple[Mapping[str, BatchProgress], frozenset[str]]:
    """How these batches are, and which of these keys hold no more."""
    with connection() as conn:
        return read_progress(conn, batch_ids), keys_that_are_over(conn, key_ids)


def _take_one(counter: Counter[str], name: str) -> None:
    counter[name] -= 1
    if counter[name] <= 0:
        del counter[name]


def _status_of(now: ProgressObject) -> str:
    return f"{now.status.value} {now.pause_reason}"


def _event(kind: str, now: ProgressObject) -> bytes:
    return f"event: {kind}\nid: {now.event_id}\ndata: {now.model_dump_json()}\n\n".encode()


async def _wait(news: asyncio.Event, seconds: float) -> None:
    """For news, or for so many seconds."""
    waiting = asyncio.ensure_future(news.wait())
    try:
        await asyncio.wait({waiting}, timeout=max(seconds, 0.0))
    finally:
        waiting.cancel()
