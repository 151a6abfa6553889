"""Which tokens the next step computes. No model and no clock in here."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from workers.engine.block_manager import BlockManager
from workers.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """`num_tokens` of the sequence, from its first token that is not computed, belong to the step."""

    sequence: Sequence
    num_tokens: int
    #: Whether the step computes the last known token, so that the next one can be sampled.
    samples: bool


@dataclass(slots=True)
class Plan:
    """One step."""

    scheduled: list[ScheduledSequence] = field(default_factory=list)
    #: Admitted for the first time.
    admitted: list[Sequence] = field(default_factory=list)
    #: Sent back to wait, with nothing computed, because blocks ran out.
    preempted: list[Sequence] = field(default_factory=list)
    #: Will never fit into the cache, and are no longer known to the scheduler.
    oversized: list[Sequence] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(entry.num_tokens for entry in self.scheduled)


class Scheduler:
    """Spends each step's token budget on letting computed tokens catch up with known tokens.

    That one rule is prefill (many tokens to catch up with), chunked prefill (more of them than budget), decode (one)
    and prefix reuse (some are computed already). Running sequences come first, oldest first; then sequences are
    admitted in the order of submission. When blocks run out, the newest running sequence gives back its own and
    starts over later. So every running sequence was submitted before every waiting one, the oldest always advances,
    and nothing starves.
    """

    def __init__(self, block_manager: BlockManager, *, max_num_sequences: int, step_tokens: int) -> None:
        if max_num_sequences < 1 or step_tokens < 1:
            raise ValueError(
                f"max_num_sequences is {max_num_sequences} and step_tokens is {step_tokens}; both must be at least 1."
            )
        self.block_manager = block_manager
        self.max_num_sequences = max_num_sequences
        self.step_tokens = step_tokens
        #: Ordered sets, in the order of submission.
        self._waiting: OrderedDict[Sequence, None] = OrderedDict()
        self._running: OrderedDict[Sequence, None] = OrderedDict()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_tokens_used(self) -> int:
        """Tokens' worth of blocks that running sequences hold."""
        return self.block_manager.num_referenced_blocks * self.block_manager.block_size

    def add(self, sequence: Sequence) -> None:
        self._waiting[sequence] = None

    def remove(self, sequence: Sequence) -> None:
        """Finished or aborted: forget the sequence and free its blocks. One that is not here is fine."""
        self._waiting.pop(sequence, None)
        if sequence in self._running:
            del self._running[sequence]
            self.block_manager.deallocate(sequence)

    def schedule(self) -> Plan:
        """The next step. It schedules something, or reports something oversized, unless nothing is here."""
        plan = Plan()
        budget = self._continue_running(plan, self.step_tokens)
        if not plan.preempted:
            self._admit_waiting(plan, budget)
        return plan

    def commit(self, plan: Plan) -> None:
        """The step ran: its tokens are computed."""
        for entry in plan.scheduled:
            entry.sequence.num_computed_tokens += entry.num_tokens

    def schedule_ahead(self, plan: Plan) -> Plan | None:
        """The step after `plan`, which was committed, made before the tokens that it samples are known.

        Only where nothing but those tokens is open: all that runs decodes on, but for what has come to its last token;
        there are blocks for it; and nothing that waits could be admitted. None otherwise. Once the tokens are known,
        and before anything else is scheduled, the plan must be settled.
        """
        # Whoever was admitted found budget left: every step has a token for all that runs.
        assert len(plan.scheduled) == len(self._running), "something that runs was not in the step"
        if not all(entry.samples for entry in plan.scheduled):
            return None
        decoding = [entry.sequence for entry in plan.scheduled if entry.sequence.num_tokens_left > 1]
        if not decoding or (self._waiting and (len(decoding) < len(self._running) or self._can_admit_next())):
            return None
        ahead = Plan()
        for sequence in decoding:
            num_tokens = sequence.num_tokens + 1
            if not self.block_manager.can_allocate(sequence, num_tokens):
                return None  # what was reserved so far is what the next step needs, too
            self.block_manager.reserve(sequence, num_tokens)
            ahead.scheduled.append(ScheduledSequence(sequence, num_tokens=1, samples=True))
        return ahead

    def settle(self, ahead: Plan) -> None:
        """The tokens are known that `ahead` was made without: what ended with them, or was aborted, is left out."""
        ahead.scheduled = [entry for entry in ahead.scheduled if entry.sequence in self._running]
        for entry in ahead.scheduled:
            self.block_manager.allocate(entry.sequence, entry.sequence.num_tokens)

    def _continue_running(self, plan: Plan, budget: int) -> int:
        for sequence in list(self._running):
            if budget == 0:
                break
            if sequence not in self._running:  # preempted for the sake of an older one
                break
            num_tokens = min(sequence.num_tokens - sequence.num_computed_tokens, budget)
            if self._make_room(plan, sequence, sequence.num_computed_tokens + num_tokens):
                budget -= self._schedule(plan, sequence, num_tokens)
        return budget

    def _make_room(self, plan: Plan, sequence: Sequence, num_tokens: int) -> bool:
        """Preempt the newest until the sequence can grow to `num_tokens`; False if that took the sequence itself."""
        while not self.block_manager.can_allocate(sequence, num_tokens):
            newest = next(reversed(self._running))
            if len(self._running) == 1:
                self.remove(sequence)
                plan.oversized.append(sequence)
                return False
            self._preempt(plan, newest)
            if newest is sequence:
                return False
        return True

    def _preempt(self, plan: Plan, sequence: Sequence) -> None:
        del self._running[sequence]
        self.block_manager.deallocate(sequence)
        self._waiting[sequence] = None
        self._waiting.move_to_end(sequence, last=False)
        plan.preempted.append(sequence)

    def _admit_waiting(self, plan: Plan, budget: int) -> None:
        blocks = self.block_manager
        while self._waiting and budget > 0 and len(self._running) < self.max_num_sequences:
            sequence = next(iter(self._waiting))
            if self._is_oversized(sequence):
                self.remove(sequence)
                plan.oversized.append(sequence)
                continue
            if (prefix := self._find_room(sequence)) is None:
                break
            del self._waiting[sequence]
            self._running[sequence] = None
            blocks.admit(sequence, prefix)
            if not sequence.was_admitted:
                sequence.was_admitted = True
                plan.admitted.append(sequence)
            if sequence.num_cached_tokens is None:
                sequence.num_cached_tokens = sequence.num_computed_tokens
            budget -= self._schedule(plan, sequence, min(sequence.num_tokens - sequence.num_computed_tokens, budget))

    def _can_admit_next(self) -> bool:
        """Whether the next `schedule` could take the first that waits, be it to say that it will never fit."""
        if len(self._running) >= self.max_num_sequences:
            return False
        sequence = next(iter(self._waiting))
        return self._is_oversized(sequence) or self._find_room(sequence) is not None

    def _is_oversized(self, sequence: Sequence) -> bool:
        return self.block_manager.num_blocks_for(sequence.num_tokens) > self.block_manager.num_blocks

    def _find_room(self, sequence: Sequence) -> list[tuple[int, int]] | None:
        """The prefix that a sequence which waits can be admitted with; None while there are too few blocks."""
        prefix = self.block_manager.find_prefix(sequence)
        # Each running sequence may need a block soon; admitting into that reserve would only preempt again.
        num_reserved = len(self._running)
        return prefix if self.block_manager.can_admit(sequence, prefix, num_reserved_blocks=num_reserved) else None

    def _schedule(self, plan: Plan, sequence: Sequence, num_tokens: int) -> int:
        num_computed = sequence.num_computed_tokens + num_tokens
        self.block_manager.allocate(sequence, num_computed)
        plan.scheduled.append(ScheduledSequence(sequence, num_tokens, num_computed == sequence.num_tokens))
        return num_tokens

    def check_integrity(self) -> None:
        """Assert that the books balance. For tests."""
        self.block_manager.check_integrity(self._running)
        assert not self._running.keys() & self._waiting.keys(), "a sequence both runs and waits"
        assert len(self._running) <= self.max_num_sequences
        assert all(not sequence.block_table for sequence in self._waiting), "a waiting sequence holds blocks"
