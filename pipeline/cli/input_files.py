"""Input files of batches, as the client commands read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import UserError

_CHAT = "/v1/chat/completions"
#: Of a line that is looked at for its endpoint.
_LINE_BYTES = 1024**2


def readable(file: Path) -> BinaryIO:
    """The file, open. Raises UserError."""
    try:
        return file.open("rb")
    except OSError as error:
        raise UserError(f"Can't read {file}: {error.strerror}.") from None


def first_url(file: Path) -> str:
    """The endpoint that the first request names; where it names none, the gateway will say what is wrong with it."""
    with readable(file) as content:
        try:
            first = json.loads(content.readline(_LINE_BYTES))
        except ValueError:
            return _CHAT
    url = first.get("url") if isinstance(first, dict) else None
    return url if isinstance(url, str) else _CHAT
