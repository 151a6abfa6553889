"""The engine and its sessions: psycopg 3, synchronous in every process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Final

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.orm import Session

from pipeline.settings import get_settings

#: Connections that one process keeps open, and as many more when it is busy.
_POOL_SIZE: Final = 10
#: Connections that one process opens at most, those of its readiness and of migrations aside.
MAX_CONNECTIONS: Final = 2 * _POOL_SIZE

#: Session settings that the promise rests on: a commit is durable, each statement sees what is committed when it
#: begins, and nothing waits for ever.
_OPTIONS = " ".join(
    f"-c {name}={value}"
    for name, value in {
        "synchronous_commit": "on",
        "default_transaction_isolation": r"read\ committed",
        "lock_timeout": "10s",
        "statement_timeout": "120s",
        "idle_in_transaction_session_timeout": "120s",
        "timezone": "UTC",
    }.items()
)


def make_engine(database_url: str, pool_size: int = _POOL_SIZE) -> Engine:
    """`postgresql+psycopg://…`; connections are tested before use, so that a restarted server costs no error."""
    return create_engine(
        database_url,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_pre_ping=True,
        pool_timeout=10,
        hide_parameters=True,  # they are prompts and answers, and errors end up in logs
        connect_args={
            "options": _OPTIONS,
            "connect_timeout": 5,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 15_000,  # ms; what is sent to a host that is gone would be waited for many minutes
            "target_session_attrs": "read-write",
            "application_name": "ryzanstein",
        },
    )


@lru_cache(maxsize=1)
def get_engine() -> Engine:
    """The engine of this process, from its settings."""
    return make_engine(get_settings().database_url.get_secret_value())


@contextmanager
def transaction(engine: Engine | None = None) -> Iterator[Session]:
    """A session in one transaction: committed at the end, rolled back on an error."""
    with Session(engine or get_engine(), expire_on_commit=False) as session, session.begin():
        yield session


@contextmanager
def connection(engine: Engine | None = None) -> Iterator[Connection]:
    """A plain connection in one transaction, for statements that do not want the unit of work."""
    with (engine or get_engine()).begin() as conn:
        yield conn
