"""Public identifiers: a prefix that says what it names, then 128 random bits in hex."""

from __future__ import annotations

import secrets


def new_id(prefix: str, separator: str = "_") -> str:
    """`new_id("batch")` gives `batch_` and 32 hex digits."""
    return f"{prefix}{separator}{secrets.token_hex(16)}"


def new_file_id() -> str:
    """Files are spelled with a dash, as OpenAI's are."""
    return new_id("file", separator="-")


def request_public_id(request_id: int) -> str:
    """The `id` of an output line, derived from the row, so that it is the same however often the line is read."""
    return f"batch_req_{request_id:032x}"


def answer_id(prefix: str, request_id: int) -> str:
    """The `id` of an answer, `chatcmpl-…` or `cmpl-…`, derived from the row for the same reason."""
    return f"{prefix}-{request_id:032x}"
