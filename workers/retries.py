"""Waiting for a database that is away: a restart or a lost connection costs time, never work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

import psycopg
import structlog
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from pipeline.telemetry.logs import summarize_error

log = structlog.get_logger(__name__)
T = TypeVar("T")

#: The server is away, or another transaction was in the way: the same again will do.
TRANSIENT: Final = (OperationalError, InterfaceError, PoolTimeout, psycopg.OperationalError, psycopg.InterfaceError)

_FIRST_WAIT: Final = 0.1
_LONGEST_WAIT: Final = 2.0


class Outage:
    """When to try something again that failed because the database is away. Says when that begins and ends."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._began_at: float | None = None
        self._wait = _FIRST_WAIT
        self._retry_at = 0.0

    def failed(self, error: Exception) -> None:
        now = time.monotonic()
        if self._began_at is None:
            self._began_at = now
            log.warning("the database is away; trying again", what=self._what, reason=summarize_error(error))
        self._retry_at = now + self._wait
        self._wait = min(2 * self._wait, _LONGEST_WAIT)

    def succeeded(self) -> None:
        if self._began_at is not None:
            seconds = round(time.monotonic() - self._began_at, 1)
            log.info("the database is back", what=self._what, seconds=seconds)
        self._began_at, self._wait, self._retry_at = None, _FIRST_WAIT, 0.0

    @property
    def seconds_to_retry(self) -> float:
        return max(0.0, self._retry_at - time.monotonic())


def until_done(work: Callable[[], T], *, what: str, give_up: threading.Event) -> T:
    """`work()`, again and again while the database is away. `work` must do no harm when it runs twice.

    Raises the last transient error once `give_up` is set, and any other error at once.
    """
    outage = Outage(what)
    while True:
        try:
            done = work()
        except TRANSIENT as error:
            if give_up.is_set():
                raise
            outage.failed(error)
            give_up.wait(outage.seconds_to_retry)
        else:
            outage.succeeded()
            return done
