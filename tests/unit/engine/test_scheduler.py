from __future__ import annotations

import random

import pytest
from schedulers import make_scheduler, make_sequence, shape, step


def test_a_prompt_is_computed_at_once_and_then_one_token_a_step() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_sequence(10))
    assert [shape(step(scheduler)) for _ in range(3)] == [[("r", 10)], [("r", 1)], [("r", 1)]]


def test_a_long_prompt_is_computed_in_chunks_beside_running_ones() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_sequence(4, "short"))
    step(scheduler)
    scheduler.add(make_sequence(30, "long", first_token=100))
    assert shape(step(scheduler)) == [("short", 1), ("long", 15)]
    assert shape(step(scheduler)) == [("short", 1), ("long", 15)]
    assert shape(step(scheduler)) == [("short", 1), ("long", 1)]


def test_only_the_last_chunk_samples() -> None:
    scheduler = make_scheduler(step_tokens=8)
    scheduler.add(make_sequence(12))
    assert not scheduler.schedule().scheduled[0].samples
    scheduler = make_scheduler(step_tokens=12)
    scheduler.add(make_sequence(12))
    assert scheduler.schedule().scheduled[0].samples


def test_admission_is_in_the_order_of_submission_even_if_a_later_one_would_fit() -> None:
    scheduler = make_scheduler(num_blocks=8, step_tokens=100)
    for name, num_tokens in (("first", 20), ("large", 16), ("small", 2)):
        scheduler.add(make_sequence(num_tokens, name, first_token=100 * num_tokens))
    assert shape(step(scheduler)) == [("first", 20)]
    assert scheduler.num_waiting == 2


def test_no_more_sequences_run_than_allowed() -> None:
    scheduler = make_scheduler(max_num_sequences=2, step_tokens=100)
    for name in "abc":
        scheduler.add(make_sequence(4, name, first_token=10 * ord(name)))
    assert [name for name, _ in shape(step(scheduler))] == ["a", "b"]
    assert scheduler.num_waiting == 1


def test_requests_of_one_step_share_a_prompt() -> None:
    scheduler = make_scheduler(step_tokens=100)
    first, second = make_sequence(13, "first"), make_sequence(13, "second")
    scheduler.add(first)
    scheduler.add(second)
    assert shape(step(scheduler)) == [("first", 13), ("second", 1)]
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 12)


def test_the_newest_is_preempted_when_blocks_run_out_and_starts_over_later() -> None:
    scheduler = make_scheduler(num_blocks=6, step_tokens=100)
    old, new = make_sequence(11, "old"), make_sequence(7, "new", first_token=50)
    scheduler.add(old)
    step(scheduler)
    scheduler.add(new)
    while not (preempted := step(scheduler).preempted):
        pass
    assert preempted == [new]
    assert new.num_computed_tokens == 0
    assert new.num_generated_tokens > 0
    scheduler.remove(old)
    plan = scheduler.schedule()
    assert plan.scheduled[0].sequence is new
    assert plan.admitted == []
    assert new.num_cached_tokens == 0, "what it finds of its own is no cache hit of the prompt"


def test_the_preempted_come_back_in_the_order_of_submission() -> None:
    scheduler = make_scheduler(num_blocks=12, step_tokens=100)
    names = ["a", "b", "c"]
    for position, name in enumerate(names):
        scheduler.add(make_sequence(3, name, first_token=100 * position))
    order = []
    while not (preempted := step(scheduler).preempted):
        pass
    while len(preempted) < 2:
        preempted += step(scheduler).preempted
    assert [sequence.request_id for sequence in preempted] == ["c", "b"]
    scheduler.remove(next(iter(scheduler._running)))
    for entry in step(scheduler).scheduled:
        order.append(entry.sequence.request_id)
    assert order[0] == "b"


def test_a_prompt_larger_than_the_cache_is_reported_and_the_next_one_runs() -> None:
    scheduler = make_scheduler(num_blocks=4)
    scheduler.add(make_sequence(17, "huge"))
    scheduler.add(make_sequence(4, "fits"))
    plan = step(scheduler)
    assert [sequence.request_id for sequence in plan.oversized] == ["huge"]
    assert shape(plan) == [("fits", 4)]


def test_one_that_outgrows_the_whole_cache_is_reported() -> None:
    scheduler = make_scheduler(num_blocks=2)
    scheduler.add(make_sequence(6))
    for _ in range(3):
        assert step(scheduler).oversized == []
    assert [sequence.num_tokens for sequence in step(scheduler).oversized] == [9]
    assert scheduler.num_running == 0
    assert scheduler.num_tokens_used == 0


def test_removal_frees_the_blocks_at_once() -> None:
    scheduler = make_scheduler()
    running, waiting = make_sequence(9), make_sequence(9)
    scheduler.add(running)
    step(scheduler)
    scheduler.add(waiting)
    for sequence in (running, waiting, waiting):
        scheduler.remove(sequence)
    assert (scheduler.num_running, scheduler.num_waiting, scheduler.num_tokens_used) == (0, 0, 0)
    scheduler.check_integrity()


@pytest.mark.parametrize(("max_num_sequences", "step_tokens"), [(0, 1), (1, 0)])
def test_limits_below_one_are_refused(max_num_sequences: int, step_tokens: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        make_scheduler(max_num_sequences=max_num_sequences, step_tokens=step_tokens)


def test_families_that_arrive_shuffled_have_their_prefixes_computed_once() -> None:
    """Eight families of 32 that share 384 tokens, as in the benchmark W4."""
    scheduler = make_scheduler(num_blocks=1024, block_size=16, max_num_sequences=256, step_tokens=2048)
    order = random.Random(0).sample(range(256), 256)
    sequences = [make_sequence(416, str(number)) for number in order]
    for sequence in sequences:
        number = int(sequence.request_id)
        sequence.token_ids = [number % 8 * 1000 + position for position in range(384)] + [number + 10_000] * 32
        scheduler.add(sequence)
    num_prompt_tokens = 0
    alive = set(sequences)
    while alive:
        plan = scheduler.schedule()
        sampling = [entry.sequence for entry in plan.scheduled if entry.samples]
        num_prompt_tokens += sum(
            max(0, min(entry.num_tokens, entry.sequence.num_prompt_tokens - entry.sequence.num_computed_tokens))
            for entry in plan.scheduled
        )
        scheduler.commit(plan)
        for sequence in sampling:
            sequence.append(7)
            if sequence.num_generated_tokens == 16:
                scheduler.remove(sequence)
                alive.remove(sequence)
    fewest = 8 * 384 + 256 * 32
    assert num_prompt_tokens <= 1.05 * fewest
    assert sum(sequence.num_cached_tokens or 0 for sequence in sequences) >= 256 * 416 - 1.05 * fewest
