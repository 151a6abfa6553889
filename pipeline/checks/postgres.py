"""What the promise needs of PostgreSQL: durable commits, sessions that wait for nothing for ever, and room for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from pipeline.checks.findings import Finding, failed, ok, warning
from pipeline.tables.session import MAX_CONNECTIONS

#: The oldest release that this is meant for; those before it get no more corrections.
_OLDEST: Final = 14
#: Connections beside the pools: readiness, control's metrics (three), migrations, people.
SPARE_CONNECTIONS: Final = 10
#: Clocks that differ by more make logs hard to read, in seconds.
_CLOCK_SECONDS: Final = 5.0

_TIMEOUTS: Final = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
_ROLE_OR_POOLER: Final = "Let the pooler in between pass startup options on, or set it for the role."

_SETTINGS: Final = text("SELECT name, setting FROM pg_settings")
_CONNECTIONS: Final = text("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")
_GROUPS: Final = text("SELECT count(*) FROM groups WHERE state <> 'stopped'")


def check_postgres(conn: Connection, now: Callable[[], float] = time.time) -> Iterator[Finding]:
    """Of the settings as they hold in a session of ours: the server, a role or a pooler may have the last word.

    `now` is this host's clock, in seconds since 1970.
    """
    settings = {row.name: str(row.setting) for row in conn.execute(_SETTINGS)}
    wrong = [*_durability(settings), *_sessions(settings), *_room(conn, settings), *_clock(conn, now)]
    version = settings["server_version"]
    if int(settings["server_version_num"]) // 10_000 < _OLDEST:
        wrong.append(
            failed("postgresql version", version, f"Use PostgreSQL {_OLDEST} or newer; older ones are not tested.")
        )
    yield from wrong
    if not wrong:
        yield ok("postgresql settings", f"{version} keeps what is committed, and waits for nothing for ever")


def _durability(settings: Mapping[str, str]) -> Iterator[Finding]:
    if settings["synchronous_commit"] == "off":
        yield failed(
            "synchronous_commit",
            "off: what was answered to a client may be gone after a crash of the server",
            f"Every session asks for `on`. {_ROLE_OR_POOLER}",
        )
    for name, danger in (
        ("fsync", "a crash of the machine may lose or damage everything"),
        ("full_page_writes", "a crash of the machine may damage tables"),
    ):
        if settings[name] != "on":
            yield warning(name, f"{settings[name]}: {danger}", f"Set {name} = on in postgresql.conf, and restart it.")


def _sessions(settings: Mapping[str, str]) -> Iterator[Finding]:
    if (isolation := settings["default_transaction_isolation"]) != "read committed":
        yield failed(
            "default_transaction_isolation",
            f"{isolation}, and everything here is written for read committed",
            _ROLE_OR_POOLER,
        )
    for name in _TIMEOUTS:
        if settings[name] == "0":
            yield warning(name, "off: a session that hangs is waited for without end", _ROLE_OR_POOLER)


def _room(conn: Connection, settings: Mapping[str, str]) -> Iterator[Finding]:
    """Whether there are connections for every process at its busiest."""
    reserved = int(settings["superuser_reserved_connections"]) + int(settings.get("reserved_connections", "0"))
    room = int(settings["max_connections"]) - reserved
    num_processes = 2 + _num_groups(conn)  # a gateway and control, of which there may be more
    needed = MAX_CONNECTIONS * num_processes + SPARE_CONNECTIONS
    advice = f"Set max_connections to {MAX_CONNECTIONS} for each gateway, control and group, and {SPARE_CONNECTIONS}."
    if room < needed:
        yield warning("max_connections", f"room for {room}, and {num_processes} processes may want {needed}", advice)
    elif (num_used := conn.execute(_CONNECTIONS).scalar_one()) > 0.9 * room:
        yield warning("max_connections", f"{num_used} of {room} are in use", advice)


def _num_groups(conn: Connection) -> int:
    with conn.begin_nested() as savepoint:
        try:
            return max(1, int(conn.execute(_GROUPS).scalar_one()))
        except SQLAlchemyError:  # no tables yet
            savepoint.rollback()
            return 1


def _clock(conn: Connection, now: Callable[[], float]) -> Iterator[Finding]:
    before = now()
    theirs = float(conn.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
    ahead = (before + now()) / 2 - theirs
    if abs(ahead) > _CLOCK_SECONDS:
        yield warning(
            "clock",
            f"this host is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the database",
            "Leases and windows go by the database's clock alone; set this host's for logs that can be compared.",
        )
