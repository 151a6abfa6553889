"""How fast tenants and keys may call: counted in Redis, by all gateways together.

Redis may lose everything at any time, and counts nothing that is worth money: while it is away everybody passes, and
what bounds a tenant is how much it may have enqueued, which SQL counts (`queue_limits`). Windows slide, so that nobody
gets two minutes' worth of calls around the turn of a minute.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import structlog
from limits import RateLimitItemPerMinute
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from redis import ConnectionPool, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from pipeline.celery import KEY_PREFIX
from pipeline.settings import Settings
from pipeline.telemetry.logs import summarize_error
from pipeline.tenancy.keys import CallLimits, Principal

log = structlog.get_logger(__name__)

#: Redis is waited for no longer, to connect or to answer, since every call of a client waits for it.
_ANSWER_SECONDS: Final = 1.0
#: After a failure, Redis is left alone for so long.
_PAUSE_SECONDS: Final = 5.0
_MINUTE: Final = 60.0
#: Of an input file, bytes that are taken for a token: before intake has read it nobody knows better.
BYTES_PER_TOKEN: Final = 4


class Kind(StrEnum):
    REQUESTS = "requests"
    TOKENS = "tokens"  #: Of the input files of batches, as they are submitted.


@dataclass(frozen=True)
class Window:
    """What is left of one limit."""

    #: In a minute.
    limit: int
    remaining: int

    @property
    def reset_seconds(self) -> float:
        """Until all of it is free again, at the pace of the limit."""
        return (self.limit - self.remaining) / self.limit * _MINUTE


@dataclass(frozen=True)
class Exceeded:
    """A limit that a call would have passed."""

    kind: Kind
    #: In a minute.
    limit: int
    #: Whether it is the key's own; else the whole tenant's.
    is_of_key: bool
    #: What the call asked for.
    wanted: int
    #: Until it may be sent again; 0 where it can never pass, since it is more than a minute's worth.
    retry_seconds: int


@dataclass(frozen=True)
class Standing:
    """How a caller stands: of each kind the tightest limit, where there is one, and where it could be counted."""

    windows: dict[Kind, Window]
    exceeded: Exceeded | None = None


@dataclass(frozen=True)
class _Limit:
    kind: Kind
    is_of_key: bool
    owner: str
    item: RateLimitItemPerMinute

    @property
    def names(self) -> tuple[str, str]:
        return self.kind.value, self.owner


class RateLimits:
    """Thread-safe."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        url = settings.redis_url.get_secret_value()
        pool = ConnectionPool.from_url(
            url,
            socket_timeout=_ANSWER_SECONDS,
            socket_connect_timeout=_ANSWER_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        self._limiter = SlidingWindowCounterRateLimiter(
            RedisStorage(url, connection_pool=pool, key_prefix=f"{KEY_PREFIX}limits")
        )
        self._by_default = CallLimits(settings.tenant_requests_per_minute, settings.tenant_tokens_per_minute)
        self._clock = clock
        self._lock = threading.Lock()
        self._paused_until = -math.inf

    def count_request(self, caller: Principal) -> Standing:
        """One more call."""
        return self._count(caller, Kind.REQUESTS, 1)

    def count_tokens(self, caller: Principal, num_tokens: int) -> Standing:
        """A submission of so many tokens more, beside the call that makes it."""
        return self._count(caller, Kind.TOKENS, num_tokens)

    def _count(self, caller: Principal, kind: Kind, cost: int) -> Standing:
        limits = [*self._limits(caller)]
        if not limits or self._clock() < self._paused_until:
            return Standing({})
        try:
            exceeded = self._take([limit for limit in limits if limit.kind is kind], cost)
            return Standing(self._windows(limits), exceeded)
        except (RedisError, OSError) as error:
            self._pause(error)
            return Standing({})

    def _limits(self, caller: Principal) -> Iterator[_Limit]:
        """The key's own first: what it refuses is not counted against its tenant."""
        of_tenant, by_default = caller.tenant_limits, self._by_default
        for is_of_key, owner, given, default in (
            (True, caller.api_key_id, caller.key_limits, CallLimits()),
            (False, caller.tenant_id, of_tenant, by_default),
        ):
            for kind, value, usual in (
                (Kind.REQUESTS, given.requests_per_minute, default.requests_per_minute),
                (Kind.TOKENS, given.tokens_per_minute, default.tokens_per_minute),
            ):
                if limit := value if value is not None else usual:
                    yield _Limit(kind, is_of_key, owner, RateLimitItemPerMinute(limit, namespace="rate"))

    def _take(self, limits: list[_Limit], cost: int) -> Exceeded | None:
        for limit in limits:
            if cost and not self._limiter.hit(limit.item, *limit.names, cost=cost):
                most = limit.item.amount
                missing = cost - self._window(limit).remaining
                wait = 0 if cost > most else max(1, math.ceil(missing / most * _MINUTE))
                return Exceeded(limit.kind, most, limit.is_of_key, cost, wait)
        return None

    def _windows(self, limits: list[_Limit]) -> dict[Kind, Window]:
        windows: dict[Kind, Window] = {}
        for limit in limits:
            window = self._window(limit)
            if limit.kind not in windows or window.remaining < windows[limit.kind].remaining:
                windows[limit.kind] = window
        return windows

    def _window(self, limit: _Limit) -> Window:
        stats = self._limiter.get_window_stats(limit.item, *limit.names)
        return Window(limit.item.amount, min(stats.remaining, limit.item.amount))

    def _pause(self, error: Exception) -> None:
        with self._lock:
            is_first = self._clock() >= self._paused_until
            self._paused_until = self._clock() + _PAUSE_SECONDS
        if is_first:
            log.warning("calls are not counted: Redis does not answer", reason=summarize_error(error))
