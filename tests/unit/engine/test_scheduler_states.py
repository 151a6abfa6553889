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
from workers.engine.scheduler import Plan, Scheduler
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
        goes_ahead=st.booleans(),
    )
    def start(
        self, num_blocks: int, block_size: int, max_num_sequences: int, step_tokens: int, goes_ahead: bool
    ) -> None:
        self.scheduler = Scheduler(
            BlockManager(num_blocks, block_size), max_num_sequences=max_num_sequences, step_tokens=step_tokens
        )
        self.capacity = num_blocks * block_size
        self.block_size = block_size
        self.step_tokens = step_tokens
        self.goes_ahead = goes_ahead
        self.ahead: Plan | None = None
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
        plan, self.ahead = self.settled() or self.scheduled(), None
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
        chosen = {entry.sequence: sum(entry.sequence.token_ids) % 2 for entry in plan.scheduled if entry.samples}
        self.scheduler.commit(plan)
        self.scheduler.check_integrity()
        if self.goes_ahead and (ahead := self.scheduler.schedule_ahead(plan)) is not None:
            self.seen["steps ahead"] += 1
            self.compute(ahead, chosen)
            self.ahead = ahead
        self.scheduler.check_integrity()
        for sequence, token_id in chosen.items():
            sequence.append(token_id)
            # Some end where nobody could know it before.
            is_last = sequence.num_tokens % 11 == 0
            if is_last or sequence.num_generated_tokens == sequence.params.max_tokens:
                self.seen["finishes"] += 1
                self.end(sequence)

    def settled(self) -> Plan | None:
        if self.ahead is None:
            return None
        self.seen["ended meanwhile"] += len(self.ahead.scheduled)
        self.scheduler.settle(self.ahead)
        self.seen["ended meanwhile"] -= len(self.ahead.scheduled)
        assert self.ahead == Plan(scheduled=self.ahead.scheduled)
        return self.ahead if self.ahead.scheduled else None

    def scheduled(self) -> Plan:
        plan = self.scheduler.schedule()
        self.compute(plan, {})
        return plan

    def compute(self, plan: Plan, chosen: dict[Sequence, int]) -> None:
        """Write the step's slots, and read all before them; `chosen` is what the scheduler does not know yet."""
        known = {
            entry.sequence: [*entry.sequence.token_ids, *([chosen[entry.sequence]] if chosen else [])]
            for entry in plan.scheduled
        }
        for entry in plan.scheduled:
            sequence, start = entry.sequence, entry.sequence.num_computed_tokens
            for position in range(start, start + entry.num_tokens):
                self.written[self.slot(sequence, position)] = self.content(sequence, known[sequence], position)
        for entry in plan.scheduled:
            sequence = entry.sequence
            for position in range(sequence.num_computed_tokens + entry.num_tokens):
                found = self.written[self.slot(sequence, position)]
                expected = self.content(sequence, known[sequence], position)
                assert found == expected, "a sequence reads what is not its own"

    def slot(self, sequence: Sequence, position: int) -> int:
        return sequence.block_table[position // self.block_size] * self.block_size + position % self.block_size

    def content(self, sequence: Sequence, token_ids: list[int], position: int) -> tuple[str, tuple[int, ...]]:
        return sequence.cache_salt, tuple(token_ids[: position + 1])

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
    for event in (
        "arrivals",
        "finishes",
        "aborts",
        "preemptions",
        "oversized",
        "cache hits",
        "steps ahead",
        "ended meanwhile",
    ):
        assert seen[event] >= 5, seen
