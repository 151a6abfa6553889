"""From the body of a line to the prompt that the engine reads: rendered, tokenised, and known to fit."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import repeat

import msgspec

from pipeline.jobs.intake_table import InvalidLine, PreparedRequest
from pipeline.schemas.bodies import ChatCompletionBody, CompletionBody
from pipeline.schemas.generation import GenerationParams
from pipeline.schemas.invalid import InvalidRequestError
from pipeline.tokenization import ChatTemplateError, ChatTemplateLimitError, Tokenizer, TokenizerError

#: Prompts of one batch that may be too much for the chat template before it is the template that is to blame. Each of
#: them takes seconds, and a batch has thousands.
_MOST_TOO_MUCH = 3


@dataclass(frozen=True, slots=True)
class CheckedLine:
    """A line of which all is good that can be known without the model's files."""

    line: int
    custom_id: str
    body: ChatCompletionBody | CompletionBody


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
        self._num_too_much = 0

    def render(self, lines: Sequence[CheckedLine]) -> tuple[list[RenderedRequest], list[InvalidLine]]:
        """Whatever is known to be wrong before tokenising; some lines at once, since templates run in another process.

        Raises TokenizerError for a model that can't be used.
        """
        rendered: list[RenderedRequest] = []
        invalid: list[InvalidLine] = []
        with closing(self._prompts([line.body for line in lines])) as prompts:
            for line, prompt in zip(lines, prompts, strict=True):
                try:
                    rendered.append(self._render(line, prompt))
                except InvalidRequestError as error:
                    invalid.append(InvalidLine.of(line.line, line.custom_id, error))
        return rendered, invalid

    def encode(self, requests: Sequence[RenderedRequest]) -> tuple[list[PreparedRequest], list[InvalidLine]]:
        """Tokenise many at once; returns those that fit, and the lines that do not. Raises TokenizerError."""
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

    def _prompts(
        self, bodies: Sequence[ChatCompletionBody | CompletionBody]
    ) -> Generator[str | list[int] | ChatTemplateError]:
        """One for each; the bodies are all of one kind."""
        chats = [body.plain_messages() for body in bodies if isinstance(body, ChatCompletionBody)]
        yield from (body.prompt for body in bodies if isinstance(body, CompletionBody))
        if not chats:
            return
        try:
            yield from self._tokenizer.render_chats(chats)
        except ChatTemplateError as error:  # there is none
            yield from repeat(error, len(chats))

    def _render(self, line: CheckedLine, prompt: str | list[int] | ChatTemplateError) -> RenderedRequest:
        body = line.body
        param = "body.messages" if isinstance(body, ChatCompletionBody) else "body.prompt"
        if isinstance(prompt, ChatTemplateError):
            self._blame(prompt)
            raise InvalidRequestError("invalid_value", param, str(prompt))
        if isinstance(prompt, str) and self._tokenizer.surely_exceeds(prompt, self._context_length):
            raise self._too_long(param, f"more than {self._context_length}", body.asked_tokens)
        return RenderedRequest(
            line=line.line,
            custom_id=line.custom_id,
            prompt=prompt,
            param=param,
            asked_tokens=body.asked_tokens,
            params=body.params(max_tokens=0, vocab_size=self._tokenizer.vocab_size),
        )

    def _blame(self, error: ChatTemplateError) -> None:
        """Raises TokenizerError once it is clear that the template is to blame, and not the messages."""
        self._num_too_much += isinstance(error, ChatTemplateLimitError)
        if self._num_too_much >= _MOST_TOO_MUCH:
            raise TokenizerError(f"{error} So it did {_MOST_TOO_MUCH} times in one batch.")

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
