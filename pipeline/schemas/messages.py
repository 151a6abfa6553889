"""Messages of a chat: OpenAI's, as far as they are supported."""

from __future__ import annotations

from typing import Any, ClassVar

from msgspec import Struct

from pipeline.schemas.invalid import InvalidRequestError, missing


class ContentPart(Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a message; only text is supported."""

    type: str
    text: str | None = None
    # Known, so that a part of another type is refused for its type.
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    refusal: Any = None


class Message(Struct, frozen=True, forbid_unknown_fields=True):
    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    # An assistant's message may be sent back as it came, where these are empty.
    refusal: Any = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None
    tool_calls: Any = None
    tool_call_id: Any = None

    ROLES: ClassVar = ("system", "developer", "user", "assistant")
    MUST_BE_EMPTY: ClassVar = ("annotations", "audio", "function_call", "tool_calls", "tool_call_id", "refusal")


def check_message(param: str, message: Message) -> None:
    """`param` is where the message is. Raises InvalidRequestError."""
    if message.role not in Message.ROLES:
        roles = ", ".join(f"'{role}'" for role in Message.ROLES)
        shown = f"'{message.role}'" if len(message.role) <= 32 else "something else"
        text = f"Invalid '{param}.role': {shown} is not supported. Supported values are: {roles}."
        raise InvalidRequestError("invalid_value", f"{param}.role", text)
    for name in Message.MUST_BE_EMPTY:
        if getattr(message, name) not in (None, [], {}):
            text = f"'{param}.{name}' is not supported. Remove it."
            raise InvalidRequestError("unsupported_parameter", f"{param}.{name}", text)
    if message.content is None:
        raise missing(f"{param}.content")
    if isinstance(message.content, list):
        _check_parts(f"{param}.content", message.content)


def _check_parts(param: str, parts: list[ContentPart]) -> None:
    if not parts:
        raise InvalidRequestError("empty_array", param, f"Invalid '{param}': expected at least one part.")
    for position, part in enumerate(parts):
        if part.type != "text":
            text = f"Invalid '{param}[{position}].type': only parts of type 'text' are supported."
            raise InvalidRequestError("unsupported_value", f"{param}[{position}].type", text)
        if part.text is None:
            raise missing(f"{param}[{position}].text")


def plain_message(message: Message) -> dict[str, str]:
    """A message as a chat template takes it; its parts become lines."""
    assert message.content is not None
    text = message.content
    if isinstance(text, list):
        text = "\n".join(part.text or "" for part in text)
    return {"role": message.role, "content": text} | ({"name": message.name} if message.name is not None else {})
