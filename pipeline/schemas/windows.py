"""Completion windows: `24h`, OpenAI's only one, and, as an extension, others such as `45m` or `3d`."""

from __future__ import annotations

import re

_WINDOW = re.compile(r"([1-9][0-9]{0,5})([mhd])")
#: The same, as a description has it.
WINDOW_PATTERN = f"^{_WINDOW.pattern}$"
_SECONDS = {"m": 60, "h": 3_600, "d": 86_400}

MIN_WINDOW_SECONDS = 15 * 60
MAX_WINDOW_SECONDS = 7 * 86_400


def window_seconds(window: str) -> int:
    """Length of a completion window. Raises ValueError, with a message for the client."""
    matched = _WINDOW.fullmatch(window)
    seconds = int(matched[1]) * _SECONDS[matched[2]] if matched else 0
    if not MIN_WINDOW_SECONDS <= seconds <= MAX_WINDOW_SECONDS:
        raise ValueError(
            f"{window[:32]!r} is no completion window: give '24h', or another number of minutes, hours or days "
            "from '15m' to '7d'."
        )
    return seconds
