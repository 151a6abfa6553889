"""The answer of one choice as its tokens come: its text, its log-probabilities, and where it ends."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pipeline.schemas.generation import GenerationParams
from pipeline.tokenization import Detokenizer, Tokenizer
from workers.backends.protocol import Choice, PositionLogprobs, TokenLogprob
from workers.engine.sampler import Sample


class ChoiceWriter:
    """Takes tokens until `finish_reason` is set.

    Where neither a stop string nor log-probabilities need the text while it comes, it is written once, at the end.
    """

    def __init__(
        self, index: int, params: GenerationParams, tokenizer: Tokenizer, eos_token_ids: Collection[int]
    ) -> None:
        self.finish_reason: str | None = None
        self._index = index
        self._params = params
        self._tokenizer = tokenizer
        self._eos_token_ids = () if params.ignore_eos else eos_token_ids
        # The answer follows a prompt: a space at its beginning belongs to it.
        self._detokenizer = Detokenizer(tokenizer, is_continuation=True)
        self._needs_text = bool(params.stop) or params.logprobs is not None
        self._text = ""
        self._token_ids: list[int] = []
        #: Per token that is not end-of-sequence: where in the text it begins.
        self._starts: list[int] = []
        self._logprobs: list[PositionLogprobs] = []

    def append(self, sample: Sample) -> None:
        assert self.finish_reason is None
        self._token_ids.append(sample.token_id)
        if sample.token_id in self._eos_token_ids:
            self._finish("stop", self._token_ids[:-1])
            return
        if self._needs_text:
            self._append_text(sample)
        if self.finish_reason is None and len(self._token_ids) == self._params.max_tokens:
            self._finish("length", self._token_ids)

    def choice(self) -> Choice:
        """The finished choice."""
        assert self.finish_reason is not None
        return Choice(
            index=self._index,
            text=self._text,
            token_ids=self._token_ids,
            finish_reason=self.finish_reason,
            logprobs=None if self._params.logprobs is None else self._logprobs,
        )

    def _append_text(self, sample: Sample) -> None:
        text, own = self._detokenizer.append(sample.token_id), self._tokenizer.token_text(sample.token_id)
        # What stands before its own are bytes of earlier tokens, which became no character.
        start = len(self._text) + (len(text) - len(own) if text.endswith(own) else 0)
        self._starts.append(start)
        if sample.logprob is not None:
            self._logprobs.append(self._position(sample, start))
        self._write(text)

    def _finish(self, reason: str, text_token_ids: Sequence[int]) -> None:
        if not self._needs_text:
            self._text = self._detokenizer.extend(text_token_ids)
        self._write(self._detokenizer.flush())
        self.finish_reason = self.finish_reason or reason

    def _write(self, text: str) -> None:
        """Add text, and end before the first stop string that it completes."""
        if not text:
            return
        before = len(self._text)
        self._text += text
        found = [at for stop in self._params.stop if (at := self._text.find(stop, max(0, before - len(stop) + 1))) >= 0]
        if found:
            self._text = self._text[: min(found)]
            self.finish_reason = "stop"
            del self._logprobs[sum(start < len(self._text) for start in self._starts) :]

    def _position(self, sample: Sample, text_offset: int) -> PositionLogprobs:
        assert sample.logprob is not None
        return PositionLogprobs(
            sampled=self._token(sample.token_id, sample.logprob),
            top=[self._token(token_id, logprob) for token_id, logprob in sample.top_logprobs],
            text_offset=text_offset,
        )

    def _token(self, token_id: int, logprob: float) -> TokenLogprob:
        return TokenLogprob(
            token_id=token_id,
            token=self._tokenizer.token_text(token_id),
            bytes=list(self._tokenizer.token_bytes(token_id)),
            logprob=logprob,
        )
