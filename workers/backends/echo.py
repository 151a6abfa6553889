"""An engine without a model: it answers with the prompt's own tokens. For tests, and to measure the pipeline itself."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from itertools import cycle, islice
from pathlib import Path

import msgspec

from pipeline.tokenization import Detokenizer, Tokenizer, TokenizerError
from workers.backends.ends import count_end
from workers.backends.measures import Measures
from workers.backends.protocol import (
    Choice,
    EngineRequest,
    EngineStartError,
    EngineState,
    Health,
    Load,
    Outcome,
    OutcomeStatus,
    Partial,
    PartialChoice,
    PositionLogprobs,
    Progress,
    TokenLogprob,
)
from workers.backends.validation import fits

#: Tokens of one request between two reports of its progress.
REPORT_TOKENS = 16


class EchoEngine:
    """Answers in the order of submission; `max_tokens` tokens each, which are those of the prompt over and over.

    Stop strings, n, logprobs (every token is certain) and token counts are as a real engine's. It has no thread of
    its own: an answer is made by whoever takes it. `tokens_per_second` counts completion tokens over all requests;
    0 is no limit. With a limit one request is answered at a time, and its progress is reported as time passes.
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
        self._progress: list[Progress] = []
        #: Tokens per choice of the first of the queue that were reported, or known before.
        self._num_reported = 0
        self._state = EngineState.STARTING
        self._num_steps = 0
        self._measures = Measures()
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
                if request.partial is not None and not fits(request.partial, request, self._tokenizer.vocab_size):
                    request = msgspec.structs.replace(request, partial=None)
                self._queue[request.id] = request
                if len(self._queue) == 1:
                    self._begin_next(self._clock())
            self._changed.notify()

    def abort(self, ids: Collection[str]) -> None:
        with self._changed:
            for request_id in ids:
                if request_id not in self._queue:
                    continue
                is_first = request_id == next(iter(self._queue))
                if is_first:
                    self._report_progress(least=1)
                request = self._queue.pop(request_id)
                self._outcomes.append(Outcome(id=request_id, status=OutcomeStatus.ABORTED, partial=request.partial))
                if is_first:
                    self._begin_next(self._clock())
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
        answers = [self._answer(request) for request in due]
        self._measure([*outcomes, *answers])
        return outcomes + answers

    def take_progress(self) -> list[Progress]:
        with self._changed:
            self._report_progress(least=REPORT_TOKENS)
            taken, self._progress = self._progress, []
        return taken

    def load(self) -> Load:
        with self._changed:
            num_queued = len(self._queue)
        return Load(
            num_waiting=max(0, num_queued - 1), num_running=min(1, num_queued), num_kv_tokens=0, num_kv_tokens_used=0
        )

    def health(self) -> Health:
        return Health(state=self._state, num_steps=self._num_steps)

    def measures(self) -> Measures:
        with self._changed:
            return self._measures.copy()

    def stop(self) -> None:
        with self._changed:
            self._state = EngineState.STOPPED
            self._outcomes += [
                Outcome(id=request.id, status=OutcomeStatus.CRASHED, partial=request.partial)
                for request in self._queue.values()
            ]
            self._queue.clear()
            self._changed.notify_all()

    def _take_due(self, due: list[EngineRequest], max_due: int, deadline: float) -> float:
        """Move requests whose answers are finished by now to `due`; returns how long to wait for more, in seconds."""
        now = self._clock()
        while self._queue and len(due) < max_due:
            request = next(iter(self._queue.values()))
            num_tokens = (request.params.max_tokens - _num_before(request)) * request.params.n
            end = self._idle_until + num_tokens * self._seconds_per_token
            if end > now:
                return min(end, deadline) - now
            due.append(self._queue.pop(request.id))
            self._begin_next(end)
        return deadline - now

    def _begin_next(self, at: float) -> None:
        self._idle_until = at
        if self._queue:
            self._num_reported = _num_before(next(iter(self._queue.values())))

    def _report_progress(self, *, least: int) -> None:
        """Of the request that is being answered, if so many tokens are new."""
        if not self._queue or not self._seconds_per_token:
            return
        request = next(iter(self._queue.values()))
        num_choices = request.params.n
        num_new = int((self._clock() - self._idle_until) / self._seconds_per_token / num_choices)
        if num_new * num_choices < least:
            return
        whole = self._choice(request)
        num_tokens = min(self._num_reported + num_new, len(whole.token_ids) - 1)  # the last one ends the answer
        if num_tokens <= self._num_reported:
            return
        token_ids = whole.token_ids[self._num_reported : num_tokens]
        logprobs: list[tuple[float, list[tuple[int, float]]]] = []
        if (num_top := request.params.logprobs) is not None:
            logprobs = [(0.0, [(token_id, 0.0)] if num_top > 0 else []) for token_id in token_ids]
        partial = Partial(choices=[PartialChoice(token_ids, logprobs)] * num_choices)
        self._progress.append(Progress(id=request.id, partial=partial))
        before = request.partial
        self._queue[request.id] = msgspec.structs.replace(
            request, partial=partial if before is None else before.joined(partial)
        )
        # What it takes from here counts from here.
        self._idle_until += (num_tokens - self._num_reported) * num_choices * self._seconds_per_token
        self._num_reported = num_tokens

    def _measure(self, outcomes: Sequence[Outcome]) -> None:
        """An answer is one step, in no time that is worth measuring."""
        with self._changed:
            for outcome in outcomes:
                count_end(self._measures, outcome)
                if outcome.status is OutcomeStatus.FINISHED:
                    self._measures.count("num_prompt_tokens", outcome.num_prompt_tokens)
                    self._measures.count("num_generation_tokens", outcome.num_completion_tokens)
                    self._measures.observe("step_seconds", 0.0)
                    self._measures.observe("step_tokens", outcome.num_completion_tokens)

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


def _num_before(request: EngineRequest) -> int:
    """Tokens per choice that were generated before."""
    return 0 if request.partial is None else max(len(choice.token_ids) for choice in request.partial.choices)


def _numbered(choice: Choice, index: int) -> Choice:
    return Choice(
        index=index,
        text=choice.text,
        token_ids=choice.token_ids,
        finish_reason=choice.finish_reason,
        logprobs=choice.logprobs,
    )
