"""The scheduler under random arrivals, ends and aborts, against a cache that remembers what was written where."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

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

from pipeline.schemas.generation import GenerationParams
from workers.engine.block_manager import BlockManager
from workers.engine.scheduler import Scheduler
from workers.engine.sequence import Sequence


class SchedulerMachine(RuleBasedStateMachine):
    """A model whose next token depends on all tokens before it, read back from the slots of the cache."""

    #: How often each thing happened, over all runs.
    seen: ClassVar[Counter[str]] = Counter()

    @initialize(
        num_blocks=st.integers(1, 12),
        block_size=st.integers(1, 4),
        max_num_sequences=st.integers(1, 5),
        step_tokens=st.integers(1, 12),
    )
    def start(self, num_blocks: int, block_size: int, max_num_sequences: int, step_tokens: int) -> None:
        self.scheduler = Scheduler(
            BlockManager(num_blocks, block_size), max_num_sequences=max_num_sequences, step_tokens=step_tokens
        )
        self.capacity = num_blocks * block_size
        self.block_size = block_size
        self.step_tokens = step_tokens
        self.written: dict[int, tuple[str, tuple[int, ...]]] = {}
        self.alive: list[Sequence] = []
        self.num_submitted = 0

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=20),
        max_tokens=st.integers(1, 12),
        salt=st.sampled_from(["", "", "other"]),
        n=st.integers(1, 3),
    )
    def submit(self, prompt: list[int], max_tokens: int, salt: str, n: int) -> None:
        for index in range(n):
            sequence = Sequence(
                request_id=str(self.num_submitted),
                index=index,
                params=GenerationParams(max_tokens=max_tokens, n=n),
                seed=0,
                cache_salt=salt,
                token_ids=list(prompt),
                num_prompt_tokens=len(prompt),
            )
            self.scheduler.add(sequence)
            self.alive.append(sequence)
            self.seen["arrivals"] += 1
        self.num_submitted += 1

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.seen["aborts"] += 1
        self.end(data.draw(st.sampled_from(self.alive)))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def distrust(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.alive))
        self.scheduler.block_manager.forget(sequence)
        self.end(sequence)

    @rule(num_steps=st.integers(1, 6))
    def run(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.step()

    def step(self) -> None:
        plan = self.scheduler.schedule()
        self.scheduler.check_integrity()
        self.seen["steps"] += 1
        self.seen["preemptions"] += len(plan.preempted)
        self.seen["oversized"] += len(plan.oversized)
        self.seen["cache hits"] += sum(bool(sequence.num_cached_tokens) for sequence in plan.admitted)
        assert bool(plan.scheduled or plan.oversized) == bool(self.alive), "nothing may starve"
        assert plan.num_tokens <= self.step_tokens
        for sequence in plan.oversized:
            assert sequence.num_tokens > self.capacity
            self.alive.remove(sequence)
        for entry in plan.scheduled:
            for position in range(
                entry.sequence.num_computed_tokens, entry.sequence.num_computed_tokens + entry.num_tokens
            ):
                self.written[self.slot(entry.sequence, position)] = self.content(entry.sequence, position)
        for entry in plan.scheduled:
            for position in range(entry.sequence.num_computed_tokens + entry.num_tokens):
                found = self.written[self.slot(entry.sequence, position)]
                assert found == self.content(entry.sequence, position), "a sequence reads what is not its own"
        sampling = [entry.sequence for entry in plan.scheduled if entry.samples]
        self.scheduler.commit(plan)
        self.scheduler.check_integrity()
        for sequence in sampling:
            sequence.append(sum(sequence.token_ids) % 2)
            if sequence.num_generated_tokens == sequence.params.max_tokens:
                self.seen["finishes"] += 1
                self.end(sequence)

    def slot(self, sequence: Sequence, position: int) -> int:
        return sequence.block_table[position // self.block_size] * self.block_size + position % self.block_size

    def content(self, sequence: Sequence, position: int) -> tuple[str, tuple[int, ...]]:
        return sequence.cache_salt, tuple(sequence.token_ids[: position + 1])

    def end(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        self.alive.remove(sequence)

    @invariant()
    def books_balance(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()
            assert self.scheduler.num_running + self.scheduler.num_waiting == len(self.alive)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(20_000):
            if not self.alive:
                break
            self.step()
        assert not self.alive, "everything ends"
        assert self.scheduler.num_tokens_used == 0


def test_the_books_balance_after_each_of_many_steps() -> None:
    SchedulerMachine.seen.clear()
    run_state_machine_as_test(
        SchedulerMachine, settings=settings(max_examples=200, stateful_step_count=40, deadline=None)
    )
    seen = SchedulerMachine.seen
    assert seen["steps"] >= 5_000, seen
    for event in ("arrivals", "finishes", "aborts", "preemptions", "oversized", "cache hits"):
        assert seen[event] >= 20, seen
