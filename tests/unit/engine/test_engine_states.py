"""The engine under random arrivals, ends and aborts: every request has one outcome, and it is the right one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tokenizer_folders import byte_level

from models.kernels.interface import PLAIN
from pipeline.schemas.generation import GenerationParams
from pipeline.tokenization import Tokenizer
from workers.backends.protocol import EngineRequest, Outcome, OutcomeStatus
from workers.engine.block_manager import BlockManager
from workers.engine.engine import EngineCore
from workers.engine.messages import Step
from workers.engine.model_runner import Computed
from workers.engine.scheduler import Scheduler

VOCAB_SIZE = 8
#: Ends an answer.
EOS = 7
#: The token after one whose logits are not finite.
BROKEN = 6


def next_token(token_ids: list[int]) -> int:
    """Depends on every token and on its place."""
    return sum((position + 3) * token_id for position, token_id in enumerate(token_ids)) % VOCAB_SIZE


class FakeModel:
    """Knows of a sequence what the cache holds at the slots of its blocks, and nothing else."""

    def __init__(self, block_size: int, *, decides: bool) -> None:
        self._block_size = block_size
        self._decides = decides
        self._tokens: dict[int, int] = {}
        self._chosen: list[int] = []
        self.num_tokens = 0
        self.num_unknown_tokens = 0

    def run(self, step: Step) -> Computed:
        self.num_tokens += len(step.token_ids)
        self.num_unknown_tokens += sum(token_id < 0 for token_id in step.token_ids)
        flat = iter([token_id if token_id >= 0 else self._chosen[~token_id] for token_id in step.token_ids])
        for row, context in enumerate(step.context_lengths):
            for position in range(context - step.query_lengths[row], context):
                self._tokens[self._slot(step, row, position)] = next(flat)
        rows = []
        for row, context in enumerate(step.context_lengths):
            if step.samples[row]:
                rows.append([self._tokens[self._slot(step, row, position)] for position in range(context)])
        logits = torch.zeros(len(rows), VOCAB_SIZE)
        self._chosen = [next_token(token_ids) for token_ids in rows]
        for row, chosen in enumerate(self._chosen):
            logits[row, chosen] = torch.nan if chosen == BROKEN else 1.0
        token_ids = PLAIN.greatest(logits)
        if self._decides:
            logits.fill_(torch.nan)  # nobody may look at what the next step could have overwritten
        return Computed(logits, lambda: token_ids, is_decided=self._decides)

    def _slot(self, step: Step, row: int, position: int) -> int:
        return step.block_tables[row][position // self._block_size] * self._block_size + position % self._block_size


class EngineMachine(RuleBasedStateMachine):
    tokenizer: ClassVar[Tokenizer]
    #: How often each thing happened, over all runs.
    seen: ClassVar[Counter[str]] = Counter()

    @initialize(
        num_blocks=st.integers(2, 24),
        block_size=st.integers(1, 4),
        max_num_sequences=st.integers(1, 6),
        step_tokens=st.integers(1, 16),
        decides=st.booleans(),
    )
    def start(self, num_blocks: int, block_size: int, max_num_sequences: int, step_tokens: int, decides: bool) -> None:
        self.model = FakeModel(block_size, decides=decides)
        blocks = BlockManager(num_blocks, block_size)
        self.core = EngineCore(
            run_model=self.model.run,
            scheduler=Scheduler(blocks, max_num_sequences=max_num_sequences, step_tokens=step_tokens),
            tokenizer=self.tokenizer,
            eos_token_ids={EOS},
        )
        self.decides = decides
        self.capacity = blocks.num_tokens
        self.requests: dict[str, EngineRequest] = {}
        self.outcomes: dict[str, Outcome] = {}

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=24),
        max_tokens=st.integers(1, 12),
        n=st.integers(1, 3),
        salt=st.sampled_from(["", "", "other"]),
    )
    def submit(self, prompt: list[int], max_tokens: int, n: int, salt: str) -> None:
        request = EngineRequest(
            id=str(len(self.requests)),
            prompt_token_ids=prompt,
            params=GenerationParams(max_tokens=max_tokens, n=n, temperature=0.0),
            seed=0,
            cache_salt=salt,
        )
        self.requests[request.id] = request
        self.core.submit(request)
        self.seen["arrivals"] += 1

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        """Also of what has ended, which changes nothing."""
        self.take(self.core.abort([data.draw(st.sampled_from(sorted(self.requests)))]))

    @rule(num_steps=st.integers(1, 6))
    def run(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.step()

    def step(self) -> None:
        plan = self.core.plan()
        self.seen["steps"] += 1
        self.seen["preemptions"] += len(plan.preempted)
        self.seen["cache hits"] += sum(bool(sequence.num_cached_tokens) for sequence in plan.admitted)
        is_under_way = self.core._ahead is not None
        before = self.model.num_tokens + (0 if is_under_way else plan.num_tokens)
        num_unknown = self.model.num_unknown_tokens
        outcomes = self.core.run(plan)
        num_ahead = self.model.num_unknown_tokens - num_unknown
        assert self.model.num_tokens == before + num_ahead, "a step ran twice, or not at all"
        assert self.decides or not num_ahead
        self.seen["tokens ahead"] += num_ahead
        self.core.scheduler.check_integrity()
        self.take(outcomes)

    def take(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            assert outcome.id not in self.outcomes, "a second outcome"
            self.outcomes[outcome.id] = outcome
            self.seen[outcome.error_code or outcome.status.value] += 1
            self.check(self.requests[outcome.id], outcome)

    def check(self, request: EngineRequest, outcome: Outcome) -> None:
        answer, is_broken = self.expected(request)
        assert outcome.num_cached_tokens < len(request.prompt_token_ids)
        match outcome:
            case Outcome(status=OutcomeStatus.FINISHED):
                assert [choice.token_ids for choice in outcome.choices] == [answer] * request.params.n
                assert not is_broken
            case Outcome(status=OutcomeStatus.FAILED, error_code="invalid_logits"):
                assert is_broken
            case Outcome(status=OutcomeStatus.FAILED, error_code="kv_cache_exceeded"):
                assert len(request.prompt_token_ids) + len(answer) > self.capacity
            case _:
                assert outcome.status is OutcomeStatus.ABORTED

    def expected(self, request: EngineRequest) -> tuple[list[int], bool]:
        """The answer, and whether it ends before a token that can't be chosen."""
        token_ids = list(request.prompt_token_ids)
        answer: list[int] = []
        while len(answer) < request.params.max_tokens and EOS not in answer:
            if (chosen := next_token(token_ids + answer)) == BROKEN:
                return answer, True
            answer.append(chosen)
        return answer, False

    @invariant()
    def every_request_is_in_the_engine_or_has_its_outcome(self) -> None:
        if hasattr(self, "core"):
            self.core.scheduler.check_integrity()
            assert self.core.is_idle == (self.requests.keys() == self.outcomes.keys())

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        for _ in range(20_000):
            if self.core.is_idle:
                break
            self.step()
        assert self.requests.keys() == self.outcomes.keys(), "everything ends"
        assert self.core.scheduler.num_running == self.core.scheduler.num_waiting == 0
        assert self.core.scheduler.num_tokens_used == 0, "a block leaked"


def test_every_request_has_one_outcome_and_it_is_the_right_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EngineMachine, "tokenizer", Tokenizer.load(byte_level(tmp_path)), raising=False)
    EngineMachine.seen.clear()
    run_state_machine_as_test(EngineMachine, settings=settings(max_examples=150, stateful_step_count=40, deadline=None))
    seen = EngineMachine.seen
    assert seen["steps"] >= 5_000, seen
    for event in (
        "arrivals",
        "preemptions",
        "cache hits",
        "finished",
        "aborted",
        "invalid_logits",
        "kv_cache_exceeded",
        "tokens ahead",
    ):
        assert seen[event] >= 5, seen
