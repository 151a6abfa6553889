"""Bodies of answers: OpenAI's `chat.completion` and `text_completion` objects, made from what an engine generated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, Literal, Protocol

import msgspec

from pipeline.ids import answer_id

CHAT_COMPLETIONS: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"

#: What OpenAI reports for a token that is all but impossible; JSON has no infinity.
_LEAST_LOGPROB: Final = -9999.0


class GeneratedToken(Protocol):
    """One token and its log-probability (natural logarithm)."""

    @property
    def token(self) -> str: ...
    @property
    def bytes(self) -> Sequence[int]: ...
    @property
    def logprob(self) -> float: ...


class GeneratedPosition(Protocol):
    @property
    def sampled(self) -> GeneratedToken: ...
    @property
    def top(self) -> Sequence[GeneratedToken]: ...
    @property
    def text_offset(self) -> int: ...


class GeneratedChoice(Protocol):
    """One answer of an engine, as the group's contract with it describes."""

    @property
    def index(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def finish_reason(self) -> str: ...
    @property
    def logprobs(self) -> Sequence[GeneratedPosition] | None: ...


class _PromptTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _PromptTokensDetails


class _TopLogprob(msgspec.Struct, frozen=True):
    token: str
    bytes: list[int]
    logprob: float


class _ChatLogprob(msgspec.Struct, frozen=True):
    token: str
    bytes: list[int]
    logprob: float
    top_logprobs: list[_TopLogprob]


class _ChatLogprobs(msgspec.Struct, frozen=True):
    content: list[_ChatLogprob]
    refusal: None = None


class _Message(msgspec.Struct, frozen=True):
    content: str
    role: str = "assistant"
    refusal: None = None


class _ChatChoice(msgspec.Struct, frozen=True):
    index: int
    message: _Message
    logprobs: _ChatLogprobs | None
    finish_reason: str


class _TextLogprobs(msgspec.Struct, frozen=True):
    tokens: list[str]
    token_logprobs: list[float]
    #: None where no alternatives were asked for.
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class _TextChoice(msgspec.Struct, frozen=True):
    index: int
    text: str
    logprobs: _TextLogprobs | None
    finish_reason: str


class _Body(msgspec.Struct, frozen=True):
    id: str
    object: Literal["chat.completion", "text_completion"]
    #: Unix seconds.
    created: int
    model: str
    choices: list[_ChatChoice] | list[_TextChoice]
    usage: _Usage
    system_fingerprint: str | None = None


def answer_body(
    *,
    endpoint: str,
    request_id: int,
    created: int,
    model: str,
    choices: Sequence[GeneratedChoice],
    num_prompt_tokens: int,
    num_cached_tokens: int,
    num_completion_tokens: int,
) -> str:
    """JSON of the answer to one request of `endpoint`, with the log-probabilities that its choices carry.

    `created` is in unix seconds; token counts are over all choices.
    """
    usage = _Usage(
        num_prompt_tokens,
        num_completion_tokens,
        num_prompt_tokens + num_completion_tokens,
        _PromptTokensDetails(num_cached_tokens),
    )
    if endpoint == CHAT_COMPLETIONS:
        chat_choices = [_chat_choice(choice) for choice in choices]
        body = _Body(answer_id("chatcmpl", request_id), "chat.completion", created, model, chat_choices, usage)
    else:
        text_choices = [_text_choice(choice) for choice in choices]
        body = _Body(answer_id("cmpl", request_id), "text_completion", created, model, text_choices, usage)
    return _to_json(body)


def _chat_choice(choice: GeneratedChoice) -> _ChatChoice:
    logprobs = None if choice.logprobs is None else _ChatLogprobs([_chat_logprob(at) for at in choice.logprobs])
    return _ChatChoice(choice.index, _Message(choice.text), logprobs, choice.finish_reason)


def _chat_logprob(position: GeneratedPosition) -> _ChatLogprob:
    sampled = position.sampled
    top = [_TopLogprob(token.token, list(token.bytes), _finite(token.logprob)) for token in position.top]
    return _ChatLogprob(sampled.token, list(sampled.bytes), _finite(sampled.logprob), top)


def _text_choice(choice: GeneratedChoice) -> _TextChoice:
    logprobs = None if choice.logprobs is None else _text_logprobs(choice.logprobs)
    return _TextChoice(choice.index, choice.text, logprobs, choice.finish_reason)


def _text_logprobs(positions: Sequence[GeneratedPosition]) -> _TextLogprobs:
    """OpenAI's older shape: parallel lists, and alternatives by their text."""
    has_alternatives = not positions or any(position.top for position in positions)
    return _TextLogprobs(
        tokens=[position.sampled.token for position in positions],
        token_logprobs=[_finite(position.sampled.logprob) for position in positions],
        top_logprobs=[_alternatives(position) for position in positions] if has_alternatives else None,
        text_offset=[position.text_offset for position in positions],
    )


def _alternatives(position: GeneratedPosition) -> dict[str, float]:
    """Likeliest first, of equal texts the likeliest; the sampled token is always among them."""
    tokens = [position.sampled, *reversed(position.top)]
    by_text = {token.token: _finite(token.logprob) for token in tokens}
    return dict(sorted(by_text.items(), key=lambda item: item[1], reverse=True))


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST_LOGPROB)


def _to_json(body: _Body) -> str:
    """Text that any JSON parser takes and a TEXT column holds: NUL and lone surrogates are escaped."""
    try:
        return msgspec.json.encode(body).decode()
    except UnicodeEncodeError:
        builtins: dict[str, Any] = msgspec.to_builtins(body)
        return json.dumps(builtins, separators=(",", ":"))
