"""An engine without a model: it answers with the prompt's own tokens. For tests, and to measure the pipeline itself."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from itertools import cycle, islice
from pathlib import Path

from pipeline.tokenization import Detokenizer, Tokenizer, TokenizerError
from workers.backends.protocol import (
    Choice,
    EngineRequest,
    EngineStartError,
    EngineState,
    Health,
    Load,
    Outcome,
    OutcomeStatus,
    PositionLogprobs,
    TokenLogprob,
)


class EchoEngine:
    """Answers in the order of submission; `max_tokens` tokens each, which are those of the prompt over and over.

    Stop strings, n, logprobs (every token is certain) and token counts are as a real engine's. It has no thread of
    its own: an answer is made by whoever takes it. `tokens_per_second` counts completion tokens over all requests;
    0 is no limit.
    """

    def __init__(
        self, model_path: Path, tokens_per_second: float = 0.0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._model_path = model_path
        self._seconds_per_token = 1 / tokens_per_second if tokens_per_second else 0.0
        self._clock = clock
        self._changed = threading.Condition()
        self._queue: OrderedDict[str, EngineRequest] = OrderedDict()
        self._outcomes: deque[Outcome] = deque()
        self._state = EngineState.STARTING
        self._num_steps = 0
        #: When the answer before the first of the queue ended, or the queue began.
        self._idle_until = 0.0

    def start(self) -> None:
        try:
            self._tokenizer = Tokenizer.load(self._model_path)
        except TokenizerError as error:
            raise EngineStartError(str(error)) from error
        with self._changed:
            self._state = EngineState.READY

    def submit(self, request: EngineRequest) -> None:
        with self._changed:
            if self._state is not EngineState.READY:
                self._outcomes.append(Outcome(id=request.id, status=OutcomeStatus.CRASHED))
            else:
                if not self._queue:
                    self._idle_until = self._clock()
                self._queue[request.id] = request
            self._changed.notify()

    def abort(self, ids: Collection[str]) -> None:
        with self._changed:
            for request_id in ids:
                if self._queue.pop(request_id, None) is not None:
                    self._outcomes.append(Outcome(id=request_id, status=OutcomeStatus.ABORTED))
            self._changed.notify()

    def take_outcomes(self, max_outcomes: int, timeout: float) -> list[Outcome]:
        deadline = self._clock() + timeout
        due: list[EngineRequest] = []
        with self._changed:
            while True:
                outcomes = [self._outcomes.popleft() for _ in range(min(max_outcomes, len(self._outcomes)))]
                wait = self._take_due(due, max_outcomes - len(outcomes), deadline)
                if outcomes or due or wait <= 0:
                    break
                self._changed.wait(wait)
        return outcomes + [self._answer(request) for request in due]

    def load(self) -> Load:
        with self._changed:
            num_queued = len(self._queue)
        return Load(
            num_waiting=max(0, num_queued - 1), num_running=min(1, num_queued), num_kv_tokens=0, num_kv_tokens_used=0
        )

    def health(self) -> Health:
        return Health(state=self._state, num_steps=self._num_steps)

    def stop(self) -> None:
        with self._changed:
            self._state = EngineState.STOPPED
            self._outcomes += [Outcome(id=request_id, status=OutcomeStatus.CRASHED) for request_id in self._queue]
            self._queue.clear()
            self._changed.notify_all()

    def _take_due(self, due: list[EngineRequest], max_due: int, deadline: float) -> float:
        """Move requests whose answers are finished by now to `due`; returns how long to wait for more, in seconds."""
        now = self._clock()
        while self._queue and len(due) < max_due:
            request = next(iter(self._queue.values()))
            end = self._idle_until + request.params.max_tokens * request.params.n * self._seconds_per_token
            if end > now:
                return min(end, deadline) - now
            self._idle_until = end
            due.append(self._queue.pop(request.id))
        return deadline - now

    def _answer(self, request: EngineRequest) -> Outcome:
        self._num_steps += 1
        choice = self._choice(request)
        num_completion_tokens = len(choice.token_ids) * request.params.n
        return Outcome(
            id=request.id,
            status=OutcomeStatus.FINISHED,
            choices=[choice if index == 0 else _numbered(choice, index) for index in range(request.params.n)],
            num_prompt_tokens=len(request.prompt_token_ids),
            num_completion_tokens=num_completion_tokens,
            engine_ms=round(num_completion_tokens * self._seconds_per_token * 1000),
        )

    def _choice(self, request: EngineRequest) -> Choice:
        params = request.params
        token_ids = list(islice(cycle(request.prompt_token_ids), params.max_tokens))
        text, starts, is_stopped = self._write(token_ids, params.stop)
        token_ids = token_ids[: len(starts)]
        logprobs = None
        if params.logprobs is not None:
            logprobs = [
                self._certain(token_id, start, params.logprobs > 0)
                for token_id, start in zip(token_ids, starts, strict=True)
                if not is_stopped or start < len(text)
            ]
        finish_reason = "stop" if is_stopped else "length"
        return Choice(index=0, text=text, token_ids=token_ids, finish_reason=finish_reason, logprobs=logprobs)

    def _write(self, token_ids: list[int], stops: Sequence[str]) -> tuple[str, list[int], bool]:
        """The text up to the first stop string, where in it each token begins that it took, and whether it stopped."""
        detokenizer = Detokenizer(self._tokenizer)
        text = ""
        starts: list[int] = []
        for token_id in token_ids:
            starts.append(len(text))
            text += detokenizer.append(token_id)
            if found := [at for at in map(text.find, stops) if at >= 0]:
                return text[: min(found)], starts, True
        return text + detokenizer.flush(), starts, False

    def _certain(self, token_id: int, text_offset: int, with_top: bool) -> PositionLogprobs:
        token = TokenLogprob(
            token_id=token_id,
            token=self._tokenizer.token_text(token_id),
            bytes=list(self._tokenizer.token_bytes(token_id)),
            logprob=0.0,
        )
        return PositionLogprobs(sampled=token, top=[token] if with_top else [], text_offset=text_offset)


def _numbered(choice: Choice, index: int) -> Choice:
    return Choice(
        index=index,
        text=choice.text,
        token_ids=choice.token_ids,
        finish_reason=choice.finish_reason,
        logprobs=choice.logprobs,
    )
