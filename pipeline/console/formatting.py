"""Numbers, money and moments as people read them. Money is exact: every digit of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from markupsafe import Markup

from pipeline.billing.currencies import exact_text

#: Where there is nothing to show.
NOTHING: Final = "–"
_KIBI: Final = 1024


def number(value: float | Decimal | None, decimals: int = 0) -> str:
    """`1,234,567`."""
    return NOTHING if value is None else f"{value:,.{decimals}f}"


def money(amount: Decimal | None, currency: str | None) -> str:
    """`1,234.5678 USD`: every digit of the amount, and the decimals of its currency at least."""
    if amount is None or currency is None:
        return NOTHING
    whole, dot, decimals = exact_text(amount, currency).partition(".")
    sign, digits = ("-", whole[1:]) if whole.startswith("-") else ("", whole)
    return f"{sign}{int(digits):,}{dot}{decimals} {currency}"


def moment(value: datetime | None) -> str:
    """In UTC, to the second, for people and for machines; `console.js` shows it in the zone of the browser as well."""
    if value is None:
        return NOTHING
    at = value.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(f"{at:%Y-%m-%dT%H:%M:%SZ}", f"{at:%Y-%m-%d %H:%M:%S} UTC")


def duration(seconds: float | None) -> str:
    """The two largest units: `3 d 4 h`, `12 min 5 s`."""
    if seconds is None:
        return NOTHING
    left = max(0, round(seconds))
    parts: list[str] = []
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def size(num_bytes: int | None) -> str:
    """`12.3 MiB`."""
    if num_bytes is None:
        return NOTHING
    value = float(num_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < _KIBI or unit == "GiB":
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= _KIBI
    raise AssertionError("unreachable")


FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    "number": number,
    "money": money,
    "moment": moment,
    "duration": duration,
    "size": size,
}
