"""Text of others in tables that a spreadsheet opens."""

from __future__ import annotations

import re
from typing import Final

#: What a spreadsheet takes for a formula, or skips to find one.
_FORMULA: Final = re.compile(r"^[\s]*[=+\-@|%]")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def cell_text(value: str | None) -> str:
    """`value` so that no spreadsheet runs it: an apostrophe goes before what begins like a formula.

    For names and descriptions alone; numbers stay as they are.
    """
    if not value:
        return ""
    shown = _CONTROL.sub(" ", value)
    return f"'{shown}" if _FORMULA.match(shown) else shown
