"""The engine of rank 0: requests in, steps of the model, outcomes out. It knows neither pipes nor other ranks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from pipeline.tokenization import Tokenizer
from workers.backends.measures import Measures
from workers.backends.protocol import EngineRequest, Outcome, OutcomeStatus, Progress
from workers.engine.choice_writer import ChoiceWriter
from workers.engine.messages import Step
from workers.engine.meter import Meter, Moments
from workers.engine.model_runner import Computed, make_step
from workers.engine.request_state import RequestState
from workers.engine.sampler import Sample, sample
from workers.engine.scheduler import Plan, Scheduler
from workers.engine.sequence import Sequence

INVALID_LOGITS = "invalid_logits"
KV_CACHE_EXCEEDED = "kv_cache_exceeded"


@dataclass(frozen=True, slots=True)
class _StartedStep:
    """A step that the model has been given."""

    plan: Plan
    #: Those that sample, as they were when it was started: each has a row of the logits.
    sampling: list[Sequence]
    computed: Computed

    def samples(self) -> list[Sample | None]:
        """The next token of each of `sampling`, None where its logits are not finite. Waits for the step."""
        token_ids: list[int] = self.computed.token_ids().tolist()
        if self.computed.is_decided:
            return [Sample(token_id) if token_id >= 0 else None for token_id in token_ids]
        return sample(self.computed.logits, self.sampling, token_ids)


class EngineCore:
    """Holds requests from `submit` to their outcome, and runs step after step: `plan`, then `run`.

    Every request was checked before it is submitted: token ids in the vocabulary, lengths within the context.
    """

    def __init__(
        self,
        *,
        run_model: Callable[[Step], Computed],
        scheduler: Scheduler,
        tokenizer: Tokenizer,
        eos_token_ids: Collection[int],
        prefix_salt: Callable[[int], str] = lambda num_prompt_tokens: "",
        with_draws: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`prefix_salt` keeps apart prompts, by their length, whose equal prefixes the model computes differently.

        `with_draws` is for a model that makes a step's draws. Where it decides a step's tokens by itself, the next step
        is started before anybody looks at them, so that a device computes while its host works.
        """
        self.scheduler = scheduler
        self.num_steps = 0
        self._run_model = run_model
        self._tokenizer = tokenizer
        self._eos_token_ids = frozenset(eos_token_ids)
        self._prefix_salt = prefix_salt
        self._with_draws = with_draws
        self._clock = clock
        self._requests: dict[str, RequestState] = {}
        self._due: dict[str, RequestState] = {}
        self._planned_at = 0.0
        #: The step after the last one that was run, if it was started already.
        self._ahead: _StartedStep | None = None
        self._meter = Meter()

    @property
    def is_idle(self) -> bool:
        return not self._requests

    def submit(self, request: EngineRequest) -> list[Outcome]:
        """Queue a request; its choices are scheduled as sequences of their own, which share the prompt's blocks.

        Returns its outcome where what was generated before is all of it already.
        """
        assert request.id not in self._requests, "a request was submitted twice"
        params = request.params
        # The salt's length keeps apart what the two parts could otherwise be joined to.
        salt = f"{len(request.cache_salt)}:{request.cache_salt}{self._prefix_salt(len(request.prompt_token_ids))}"
        state = RequestState(
            request=request,
            sequences=[
                Sequence(
                    request_id=request.id,
                    index=index,
                    params=params,
                    seed=request.seed,
                    cache_salt=salt,
                    token_ids=list(request.prompt_token_ids),
                    num_prompt_tokens=len(request.prompt_token_ids),
                )
                for index in range(params.n)
            ],
            writers=[ChoiceWriter(index, params, self._tokenizer, self._eos_token_ids) for index in range(params.n)],
            moments=Moments(self._clock()),
        )
        self._requests[request.id] = state
        if request.partial is not None:
            state.resume(request.partial)
        if len(state.choices) == params.n:
            return [self._end(state, OutcomeStatus.FINISHED)]
        for sequence in state.sequences:
            if sequence.index not in state.choices:
                self.scheduler.add(sequence)
        return []

    def abort(self, ids: Collection[str]) -> list[Outcome]:
        """Free what these requests hold, at once; their last progress is to be taken. Those not here are fine."""
        states = [state for request_id in ids if (state := self._requests.get(request_id)) is not None]
        self._due |= {state.request.id: state for state in states if state.num_unreported}
        return [self._end(state, OutcomeStatus.ABORTED) for state in states]

    def take_progress(self) -> list[Progress]:
        """The reports that are due."""
        due, self._due = self._due, {}
        return [state.take_progress() for state in due.values()]

    def plan(self) -> Plan:
        """What the next step computes, which may be under way."""
        self._planned_at = self._clock()
        if self._ahead is not None:
            self.scheduler.settle(self._ahead.plan)
            if self._ahead.plan.scheduled:
                return self._ahead.plan
            self._ahead = None  # everything in it has ended: what it computes is nobody's
        plan = self.scheduler.schedule()
        self._meter.planned(plan)
        for sequence in plan.admitted:
            moments = self._requests[sequence.request_id].moments
            if moments.admitted_at is None:
                moments.admitted_at = self._planned_at
        return plan

    def take_measures(self) -> Measures:
        """What was measured since the last call."""
        return self._meter.take()

    def run(self, plan: Plan) -> list[Outcome]:
        """Run the step; returns the outcomes of those that it ended."""
        ended: list[tuple[RequestState, str | None, str | None]] = []
        for sequence in plan.oversized:
            if (state := self._requests.get(sequence.request_id)) is not None:
                ended.append((state, KV_CACHE_EXCEEDED, self._describe_oversized(sequence)))
        if plan.scheduled:
            ended += self._run_step(plan)
            now = self._clock()
            self._share_time(plan, (now - self._planned_at) * 1000)
            self._measure_step(plan, now)
        outcomes = []
        for state, error_code, error_message in ended:
            if state.request.id in self._requests:  # a request can fail by several of its choices
                status = OutcomeStatus.FINISHED if error_code is None else OutcomeStatus.FAILED
                self._due.pop(state.request.id, None)
                outcome = self._end(state, status, error_code, error_message)
                if status is OutcomeStatus.FINISHED:
                    self._meter.finished(
                        state.moments, self._clock(), outcome.num_completion_tokens, len(outcome.choices)
                    )
                outcomes.append(outcome)
        return outcomes

    def _run_step(self, plan: Plan) -> list[tuple[RequestState, str | None, str | None]]:
        step = self._ahead or self._start(plan)
        assert step.plan is plan, "another step was started ahead"
        self.scheduler.commit(plan)
        self.num_steps += 1
        self._ahead = self._start_next(step)
        wanted = {entry.sequence for entry in plan.scheduled}
        ended: list[tuple[RequestState, str | None, str | None]] = []
        for sequence, next_token in zip(step.sampling, step.samples(), strict=True):
            if sequence not in wanted:  # it ended after the step was started
                continue
            state = self._requests[sequence.request_id]
            if next_token is None:
                self.scheduler.block_manager.forget(sequence)
                ended.append(
                    (state, INVALID_LOGITS, "The model computed numbers that are not finite for this request.")
                )
                continue
            sequence.append(next_token.token_id)
            writer = state.writers[sequence.index]
            writer.append(next_token)
            if state.add_unreported(sequence.index, next_token):
                self._due[sequence.request_id] = state
            if writer.finish_reason is not None:
                self.scheduler.remove(sequence)
                state.choices[sequence.index] = writer.choice()
                if len(state.choices) == state.request.params.n:
                    ended.append((state, None, None))
        return ended

    def _start(self, plan: Plan, rows: Mapping[Sequence, int] | None = None) -> _StartedStep:
        sampling = [entry.sequence for entry in plan.scheduled if entry.samples]
        return _StartedStep(plan, sampling, self._run_model(make_step(plan, rows, with_draws=self._with_draws)))

    def _start_next(self, step: _StartedStep) -> _StartedStep | None:
        """Start the step after this one, if nothing but its tokens is open."""
        if not step.computed.is_decided or (ahead := self.scheduler.schedule_ahead(step.plan)) is None:
            return None
        return self._start(ahead, {sequence: row for row, sequence in enumerate(step.sampling)})

    def _measure_step(self, plan: Plan, now: float) -> None:
        sampling = [self._requests[entry.sequence.request_id] for entry in plan.scheduled if entry.samples]
        first = [state.moments for state in sampling if state.moments.first_token_at is None]
        for moments in first:
            moments.first_token_at = now
        self._meter.stepped(plan, self._planned_at, now, len(sampling), len(first))

    def _share_time(self, plan: Plan, step_ms: float) -> None:
        num_tokens: Counter[str] = Counter()
        for entry in plan.scheduled:
            num_tokens[entry.sequence.request_id] += entry.num_tokens
        token_ms = step_ms / num_tokens.total()
        for request_id, num in num_tokens.items():
            self._requests[request_id].engine_ms += token_ms * num

    def _end(
        self,
        state: RequestState,
        status: OutcomeStatus,
        error_code: str | None = None,
        error_message: str | None = None,
    ) -> Outcome:
        del self._requests[state.request.id]
        for sequence in state.sequences:
            self.scheduler.remove(sequence)
        return state.outcome(status, error_code, error_message)

    def _describe_oversized(self, sequence: Sequence) -> str:
        return (
            f"The request came to {sequence.num_tokens} tokens, but the KV cache of the group holds "
            f"{self.scheduler.block_manager.num_tokens}. Send a shorter prompt or a lower max_tokens, "
            "or give the group more memory."
        )
