"""Reading more rows than fit in memory, within a session's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar, cast

import psycopg
from sqlalchemy.orm import Session

T = TypeVar("T")


def driver_of(session: Session) -> psycopg.Connection[Any]:
    """psycopg's own connection of a session, in the transaction that the session is in."""
    return cast("psycopg.Connection[Any]", session.connection().connection.driver_connection)


def chunks(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    """`rows` in lists of `size`, the last of them shorter."""
    remaining = iter(rows)
    while chunk := list(islice(remaining, size)):
        yield chunk
