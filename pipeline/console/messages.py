"""Prompts and answers as a person reads them: who says what."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

#: Parts of one prompt or answer that are shown.
_MOST: Final = 200


@dataclass(frozen=True)
class Said:
    """One message, prompt or choice."""

    #: A role, `prompt`, or `choice 2`.
    who: str
    text: str
    #: Why an answer ended.
    note: str | None = None


def prompt_of(line: bytes) -> list[Said] | None:
    """Of a line of an input file; None where it can't be read as one."""
    body = _object(line).get("body")
    if not isinstance(body, dict):
        return None
    messages, prompt = body.get("messages"), body.get("prompt")
    if isinstance(messages, list):
        return [_message(message) for message in messages[:_MOST]]
    return None if prompt is None else [Said("prompt", _text(prompt))]


def answer_of(body: str) -> list[Said]:
    """Of the body of an answer; its JSON where it has no choices."""
    choices = _object(body.encode()).get("choices")
    if not isinstance(choices, list) or not choices:
        return [Said("answer", body)]
    return [_choice(number, choice, len(choices)) for number, choice in enumerate(choices[:_MOST], 1)]


def _message(message: Any) -> Said:
    if not isinstance(message, dict):
        return Said("message", _text(message))
    return Said(str(message.get("role", "message")), _content(message))


def _choice(number: int, choice: Any, num_choices: int) -> Said:
    who = "answer" if num_choices == 1 else f"choice {number}"
    if not isinstance(choice, dict):
        return Said(who, _text(choice))
    message = choice.get("message")
    text = _content(message) if isinstance(message, dict) else _text(choice.get("text", ""))
    reason = choice.get("finish_reason")
    return Said(who, text, None if reason is None else str(reason))


def _content(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):  # parts, such as {"type": "text", "text": "…"}
        texts = [part.get("text", part) if isinstance(part, dict) else part for part in content]
        return "\n".join(_text(text) for text in texts)
    more = [_text(message[name]) for name in ("refusal", "tool_calls") if message.get(name)]
    return "\n".join([*([] if content is None else [_text(content)]), *more])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
