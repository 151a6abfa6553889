"""Prices of what was recorded are changed, or dropped, by one at a time, and by nobody while an invoice needs them."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

_KEY: Final = "hashtextextended('rating again', 0)"
_CHANGE: Final = text(f"SELECT pg_advisory_xact_lock({_KEY})")
_KEEP: Final = text(f"SELECT pg_advisory_xact_lock_shared({_KEY})")


def change_prices(session: Session | Connection) -> None:
    """Before prices are changed: waits for who changes or keeps them, until the caller's transaction ends."""
    session.execute(_CHANGE)


def keep_prices(session: Session | Connection) -> None:
    """Nobody changes prices until the caller's transaction ends; others may keep them as well."""
    session.execute(_KEEP)
