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


def until_done(work: Callable[[], T], *, what: str, give_up: threading.Event | None = None) -> T:
    """`work()`, again and again while the database is away. `work` must do no harm when it runs twice.

    Raises the last transient error once `give_up` is set, and any other error at once.
    """
    wait = _FIRST_WAIT
    began = time.monotonic()
    while True:
        try:
            done = work()
        except TRANSIENT as error:
            if give_up is not None and give_up.is_set():
                raise
            if wait == _FIRST_WAIT:
                log.warning("the database is away; trying again", what=what, reason=summarize_error(error))
            if give_up is None:
                time.sleep(wait)
            else:
                give_up.wait(wait)
            wait = min(2 * wait, _LONGEST_WAIT)
        else:
            if wait > _FIRST_WAIT:
                log.info("the database is back", what=what, seconds=round(time.monotonic() - began, 1))
            return done
