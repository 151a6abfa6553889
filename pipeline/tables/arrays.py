"""Columns of many rows as one parameter each, for `unnest(%(ids)s::bigint[], …)`.

The driver takes a list apart value by value, which takes longer for the rows of a recording than writing them does.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal


def numbers(values: Iterable[int | Decimal | None]) -> str:
    """The literal of an array of numbers; every digit of a Decimal is in it."""
    return "{" + ",".join(map(str, values)).replace("None", "NULL") + "}"


def words(values: Iterable[str]) -> str:
    """The literal of an array of texts, of which none is NULL."""
    return "{" + ",".join([_quoted(value) for value in values]) + "}"


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
