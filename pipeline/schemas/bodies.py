"""The bodies of requests: OpenAI's, as far as they are supported.

Nothing is ignored in silence. Fields that change nothing here are listed as such; all others are checked, refused by
name, or unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from msgspec import Meta, Struct

from pipeline.schemas.generation import MAX_TOP_LOGPROBS, GenerationParams
from pipeline.schemas.invalid import InvalidRequestError
from pipeline.schemas.messages import Message, check_message, plain_message

#: OpenAI allows 128 choices; they multiply the work of one line, which is still claimed and recorded as one.
MAX_CHOICES = 16
#: OpenAI's limit.
MAX_STOPS = 4
MAX_STOP_CHARS = 1024
MAX_LOGIT_BIASES = 1024
#: Below this a temperature only loses precision, so it means greedy.
LEAST_TEMPERATURE = 1e-5
#: What `/v1/completions` generates where `max_tokens` is missing. Chats go on to the end of the context.
DEFAULT_COMPLETION_TOKENS = 16

_INT32_MAX = 2**31 - 1

Count = Annotated[int, Meta(ge=1, le=_INT32_MAX)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]


class Body(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What both endpoints share. A null means the default, as in OpenAI's API."""

    model: str
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    #: Extension; -1 and 0 mean off.
    top_k: Annotated[int, Meta(ge=-1, le=_INT32_MAX)] | None = None
    max_tokens: Count | None = None
    stop: str | Annotated[list[str], Meta(max_length=MAX_STOPS)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    #: Token ids, as JSON writes keys, to biases.
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    #: Extension.
    ignore_eos: bool | None = None

    # These change nothing here: they are labels, or about OpenAI's own storage, caching and capacity.
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    # Only these values are supported: see ONLY.
    stream: Any = None
    stream_options: Any = None

    #: Parameters of which only some values are supported; None is one of them for each.
    ONLY: ClassVar[Mapping[str, tuple[Any, ...]]] = {"stream": (False,), "stream_options": ()}

    @property
    def num_logprobs(self) -> int | None:
        raise NotImplementedError

    @property
    def asked_tokens(self) -> int | None:
        """Most tokens to generate, per choice; None: as many as the context has room for."""
        raise NotImplementedError

    def check(self) -> None:
        """What the types can't say. Raises InvalidRequestError."""
        for name, values in self.ONLY.items():
            value = getattr(self, name)
            if value is not None and value not in values:
                raise _unsupported(name)
        for position, stop in enumerate(self.stops):
            param = "body.stop" if isinstance(self.stop, str) else f"body.stop[{position}]"
            _check_stop(param, stop)
        if self.logit_bias is not None and len(self.logit_bias) > MAX_LOGIT_BIASES:
            message = f"Invalid 'body.logit_bias': expected at most {MAX_LOGIT_BIASES} tokens."
            raise InvalidRequestError("object_above_max_properties", "body.logit_bias", message)

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def params(self, max_tokens: int, vocab_size: int) -> GenerationParams:
        """What the engine is asked. Raises InvalidRequestError for a bias of a token that is not in the vocabulary."""
        chosen: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": None if self.top_k is None else max(self.top_k, 0),
            "stop": self.stops,
            "seed": self.seed,
            "n": self.n,
            "logprobs": self.num_logprobs,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": {_token_id(key, vocab_size): bias for key, bias in (self.logit_bias or {}).items()},
            "ignore_eos": self.ignore_eos,
        }
        if self.temperature is not None and self.temperature < LEAST_TEMPERATURE:
            chosen["temperature"] = 0.0
        # What is not given keeps its default, and stays out of the stored JSON.
        return GenerationParams(
            max_tokens=max_tokens, **{name: value for name, value in chosen.items() if value is not None}
        )


class ChatCompletionBody(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    response_format: Any = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None

    ONLY: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **Body.ONLY,
        "response_format": ({"type": "text"},),
        "tools": ([],),
        "tool_choice": ("none", "auto"),  # Without tools both mean none.
        "parallel_tool_calls": (True, False),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "reasoning_effort": (),
        "verbosity": (),
        "web_search_options": (),
    }

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def asked_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def check(self) -> None:
        super().check()
        if self.max_tokens not in (None, self.asked_tokens):
            message = "'body.max_tokens' and 'body.max_completion_tokens' differ. Set one of them."
            raise InvalidRequestError("invalid_value", "body.max_tokens", message)
        if self.top_logprobs is not None and not self.logprobs:
            message = "'body.top_logprobs' needs 'body.logprobs' to be true."
            raise InvalidRequestError("invalid_value", "body.top_logprobs", message)
        for position, message_ in enumerate(self.messages):
            check_message(f"body.messages[{position}]", message_)

    def plain_messages(self) -> list[dict[str, str]]:
        """Messages as a chat template takes them; parts of one message become lines."""
        return [plain_message(message) for message in self.messages]


class CompletionBody(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `/v1/completions`: one prompt, as text or as token ids."""

    prompt: str | Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=1)]
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None

    best_of: Any = None
    echo: Any = None
    suffix: Any = None

    ONLY: ClassVar[Mapping[str, tuple[Any, ...]]] = {**Body.ONLY, "echo": (False,), "suffix": ("",)}

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def asked_tokens(self) -> int | None:
        return DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens

    def check(self) -> None:
        super().check()
        # OpenAI's default of best_of is 1, so a client may send it with any n.
        if self.best_of not in (None, 1, self.n or 1):
            message = "'body.best_of' is not supported, except for the value of 'body.n'. Remove it."
            raise InvalidRequestError("unsupported_value", "body.best_of", message)


def _check_stop(param: str, stop: str) -> None:
    if not stop or len(stop) > MAX_STOP_CHARS:
        message = f"Invalid '{param}': expected 1 to {MAX_STOP_CHARS} characters, but got {len(stop)}."
        raise InvalidRequestError("invalid_value", param, message)
    if "\0" in stop:  # It is stored as JSON, which PostgreSQL keeps without this character.
        raise InvalidRequestError("invalid_value", param, f"Invalid '{param}': the character U+0000 is not allowed.")


def _token_id(key: str, vocab_size: int) -> int:
    if key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocab_size:
        return int(key)
    message = f"Invalid 'body.logit_bias': keys must be token ids from 0 to {vocab_size - 1}."
    raise InvalidRequestError("invalid_value", "body.logit_bias", message)


def _unsupported(name: str) -> InvalidRequestError:
    param = f"body.{name}"
    if name == "stream":
        return InvalidRequestError("unsupported_value", param, "Streaming is not supported inside a batch.")
    if name == "response_format":
        message = "'body.response_format' supports only the type 'text' for now."
        return InvalidRequestError("unsupported_value", param, message)
    return InvalidRequestError("unsupported_parameter", param, f"'{param}' is not supported. Remove it.")
