"""From the body of a line to the prompt that the engine reads: rendered, tokenised, and known to fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from pipeline.jobs.intake_table import InvalidLine, PreparedRequest
from pipeline.schemas.bodies import ChatCompletionBody, CompletionBody
from pipeline.schemas.generation import GenerationParams
from pipeline.schemas.invalid import InvalidRequestError
from pipeline.tokenization import ChatTemplateError, Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedRequest:
    """A good line but for its prompt, which is still text, or ids that the client chose."""

    line: int
    custom_id: str
    prompt: str | list[int]
    #: Where the prompt came from.
    param: str
    #: None: as many as the context has room for.
    asked_tokens: int | None
    #: All but `max_tokens`.
    params: GenerationParams

    @property
    def num_bytes(self) -> int:
        return len(self.prompt.encode()) if isinstance(self.prompt, str) else 4 * len(self.prompt)


class PromptEncoder:
    """Prompts of one model, for requests to one endpoint."""

    def __init__(self, tokenizer: Tokenizer, context_length: int) -> None:
        self._tokenizer = tokenizer
        self._context_length = context_length

    def render(self, line: int, custom_id: str, body: ChatCompletionBody | CompletionBody) -> RenderedRequest:
        """Raises InvalidRequestError for whatever is known to be wrong before tokenising."""
        param = "body.messages" if isinstance(body, ChatCompletionBody) else "body.prompt"
        prompt = self._render_chat(body) if isinstance(body, ChatCompletionBody) else body.prompt
        if isinstance(prompt, str) and self._tokenizer.surely_exceeds(prompt, self._context_length):
            raise self._too_long(param, f"more than {self._context_length}", body.asked_tokens)
        return RenderedRequest(
            line=line,
            custom_id=custom_id,
            prompt=prompt,
            param=param,
            asked_tokens=body.asked_tokens,
            params=body.params(max_tokens=0, vocab_size=self._tokenizer.vocab_size),
        )

    def encode(self, requests: Sequence[RenderedRequest]) -> tuple[list[PreparedRequest], list[InvalidLine]]:
        """Tokenise many at once; returns those that fit, and the lines that do not."""
        # A chat template writes the special tokens of the model itself; a bare prompt gets them here.
        is_bare = any(request.param == "body.prompt" for request in requests)
        texts = [request.prompt for request in requests if isinstance(request.prompt, str)]
        encoded = iter(self._tokenizer.encode_batch(texts, add_special_tokens=is_bare))
        prepared: list[PreparedRequest] = []
        invalid: list[InvalidLine] = []
        for request in requests:
            token_ids = next(encoded) if isinstance(request.prompt, str) else request.prompt
            try:
                prepared.append(self._prepare(request, token_ids))
            except InvalidRequestError as error:
                invalid.append(InvalidLine.of(request.line, request.custom_id, error))
        return prepared, invalid

    def _render_chat(self, body: ChatCompletionBody) -> str:
        try:
            return self._tokenizer.render_chat(body.plain_messages())
        except ChatTemplateError as error:
            raise InvalidRequestError("invalid_value", "body.messages", str(error)) from None

    def _prepare(self, request: RenderedRequest, token_ids: list[int]) -> PreparedRequest:
        param = request.param
        if not token_ids:
            raise InvalidRequestError("invalid_value", param, f"Invalid '{param}': the prompt has no token.")
        if max(token_ids) >= self._tokenizer.vocab_size:
            message = f"Invalid '{param}': token ids of this model go from 0 to {self._tokenizer.vocab_size - 1}."
            raise InvalidRequestError("invalid_value", param, message)
        room = self._context_length - len(token_ids)
        asked = request.asked_tokens
        if room < (1 if asked is None else asked):
            raise self._too_long(param, str(len(token_ids)), asked)
        params = msgspec.structs.replace(request.params, max_tokens=room if asked is None else asked)
        return PreparedRequest(
            line=request.line, custom_id=request.custom_id, prompt_token_ids=token_ids, params=params
        )

    def _too_long(self, param: str, num_prompt_tokens: str, asked_tokens: int | None) -> InvalidRequestError:
        limit = f"This model's maximum context length is {self._context_length} tokens."
        if asked_tokens is None:
            message = f"{limit} However, your prompt has {num_prompt_tokens} tokens. Please reduce its length."
        else:
            message = (
                f"{limit} However, you asked for {num_prompt_tokens} tokens of prompt and {asked_tokens} of answer. "
                "Please reduce the length of the prompt, or max_tokens."
            )
        return InvalidRequestError("context_length_exceeded", param, message)
