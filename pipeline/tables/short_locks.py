"""Schema changes beside processes that work: they wait for a lock for an instant at a time, and try again.

A change that waits for a lock holds up everyone who wants the same table after it, for as long as the transaction
that it waits for goes on. So it gives up soon, lets them through, and comes back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from pipeline.errors import UserError

log = logging.getLogger(__name__)

#: Longest wait for one lock. With the change itself, which takes an instant, everyone else waits less than a second.
LOCK_SECONDS: Final = 0.5
#: How long it is tried in all, in seconds.
PATIENCE_SECONDS: Final = 300.0
#: Waits between tries, in seconds: twice as long each time.
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 5.0
#: Between looks at a lock that somebody holds for long.
_LOOK_SECONDS: Final = 0.1

#: Held by whoever migrates; any number that nothing else locks.
MIGRATION_LOCK: Final = 7_263_001

#: lock_not_available, and deadlock_detected, which more than one lock may end in.
_BLOCKED: Final = ("55P03", "40P01")

_OLDEST: Final = text("""
    SELECT pid, application_name, extract(epoch FROM clock_timestamp() - xact_start)::int AS seconds
    FROM pg_stat_activity
    WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()
    ORDER BY xact_start LIMIT 1
""")


class MigrationBlockedError(UserError):
    """Another transaction holds a table that the migration must change."""


def change_with_short_locks(
    connection: Connection, change: Callable[[], None], *, patience: float = PATIENCE_SECONDS
) -> None:
    """`change()`, which commits on `connection` what it has done, again and again while a table is locked.

    Statements may take any time, waiting for locks aside. Raises MigrationBlockedError after `patience` seconds;
    what `change` had committed by then stays.
    """
    _set(connection, lock_timeout=LOCK_SECONDS, statement_timeout=0.0)
    deadline = time.monotonic() + patience
    pause = _FIRST_PAUSE
    while True:
        try:
            change()
        except OperationalError as error:
            connection.rollback()
            if getattr(error.orig, "sqlstate", None) not in _BLOCKED:
                raise
            blocker = _oldest_transaction(connection)
            if time.monotonic() > deadline:
                raise MigrationBlockedError(
                    f"A table could not be locked within {patience:g} s. {blocker} End that transaction "
                    "(SELECT pg_terminate_backend(PID)), or try again when it has ended."
                ) from None
            log.warning("a table is locked; trying again in %g s. %s", pause, blocker)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            return


def wait_for_lock(connection: Connection, lock: int) -> None:
    """Hold an advisory lock until the connection closes; wait for whoever holds it, however long that takes.

    Asks again and again: a statement that waits would have a snapshot, which an index that the other builds beside
    everyone would wait for in turn.
    """
    while not connection.execute(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": lock}).scalar_one():
        connection.commit()
        time.sleep(_LOOK_SECONDS)
    connection.commit()


def _set(connection: Connection, **seconds: float) -> None:
    """Limits of this session, in seconds; 0 is none."""
    for name, value in seconds.items():
        connection.execute(
            text("SELECT set_config(:name, :value, false)"), {"name": name, "value": f"{round(value * 1000)}ms"}
        )
    connection.commit()


def _oldest_transaction(connection: Connection) -> str:
    oldest = connection.execute(_OLDEST).one_or_none()
    connection.rollback()
    if oldest is None:
        return "No transaction is open by now."
    return f"The oldest is of process {oldest.pid} ({oldest.application_name or 'no name'}), {oldest.seconds} s old."
