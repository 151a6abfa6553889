"""One line of an input file: an envelope, and a body of the kind that the batch's endpoint takes.

Decoded with msgspec, which stops at the first thing that is wrong: a line of megabytes can't grow a list of millions of
errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from pipeline.schemas.bodies import ChatCompletionBody, CompletionBody
from pipeline.schemas.invalid import InvalidRequestError, decode, missing, storable

#: OpenAI's limit.
MAX_CUSTOM_ID_CHARS = 64


class RequestLine(Struct, frozen=True, forbid_unknown_fields=True):
    """The envelope of a request. What is in it is looked at by `check_line` and `parse_body`."""

    custom_id: Any = UNSET
    method: Any = UNSET
    url: Any = UNSET
    body: Raw | UnsetType = UNSET


class _NamedLine(Struct, frozen=True):
    """Skips all but the custom_id."""

    custom_id: Any = None


BODIES: Mapping[str, type[ChatCompletionBody] | type[CompletionBody]] = {
    "/v1/chat/completions": ChatCompletionBody,
    "/v1/completions": CompletionBody,
}

_line_decoder = msgspec.json.Decoder(RequestLine)
_named_line_decoder = msgspec.json.Decoder(_NamedLine)
_body_decoders = {endpoint: msgspec.json.Decoder(body) for endpoint, body in BODIES.items()}


def parse_line(data: bytes) -> RequestLine:
    """Raises InvalidRequestError."""
    return decode(_line_decoder, data, "")


def check_line(line: RequestLine, endpoint: str) -> None:
    """The envelope but for its body. Raises InvalidRequestError."""
    check_custom_id(line.custom_id)
    for name, code, expected in (("method", "invalid_method", "POST"), ("url", "invalid_url", endpoint)):
        value = getattr(line, name)
        if value is UNSET:
            raise missing(name)
        if value != expected:
            shown = f"'{value}'" if isinstance(value, str) and len(value) <= 64 else "something else"
            message = f"Invalid '{name}': expected '{expected}', the endpoint of the batch, but got {shown}."
            if name == "method":
                message = f"Invalid 'method': expected '{expected}', but got {shown}."
            raise InvalidRequestError(code, name, message)
    if line.body is UNSET:
        raise missing("body")


def check_custom_id(custom_id: Any) -> None:
    """Raises InvalidRequestError."""
    if custom_id is UNSET or custom_id is None or custom_id == "":
        raise missing("custom_id")
    if not isinstance(custom_id, str):
        raise InvalidRequestError("invalid_type", "custom_id", "Invalid type for 'custom_id': expected a string.")
    if len(custom_id) > MAX_CUSTOM_ID_CHARS:
        message = f"Invalid 'custom_id': expected at most {MAX_CUSTOM_ID_CHARS} characters, but got {len(custom_id)}."
        raise InvalidRequestError("string_above_max_length", "custom_id", message)
    if "\0" in custom_id:
        message = "Invalid 'custom_id': the character U+0000 is not allowed."
        raise InvalidRequestError("invalid_value", "custom_id", message)


def parse_body(line: RequestLine, endpoint: str) -> ChatCompletionBody | CompletionBody:
    """The body of a line of which `check_line` thinks well. Raises InvalidRequestError."""
    assert not isinstance(line.body, UnsetType)
    body = decode(_body_decoders[endpoint], line.body, "body")
    body.check()
    return body


def readable_custom_id(data: bytes | None) -> str | None:
    """The custom_id of a line that is not good, for its error; None where there is none to be read."""
    try:
        custom_id = _named_line_decoder.decode(data or b"").custom_id
    except (ValueError, RecursionError):
        return None
    return storable(custom_id[:MAX_CUSTOM_ID_CHARS]) if isinstance(custom_id, str) else None
