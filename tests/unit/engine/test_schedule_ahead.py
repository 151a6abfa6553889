from __future__ import annotations

from schedulers import make_scheduler, make_sequence, shape, step

from pipeline.schemas.generation import GenerationParams
from workers.engine.scheduler import Plan, Scheduler


def run_step(scheduler: Scheduler) -> Plan:
    """Up to its commit: the tokens that it samples are not known yet."""
    plan = scheduler.schedule()
    scheduler.commit(plan)
    return plan


def test_the_step_after_one_is_made_before_its_tokens_are_known() -> None:
    scheduler = make_scheduler()
    sequence = make_sequence(4)
    scheduler.add(sequence)
    ahead = scheduler.schedule_ahead(run_step(scheduler))
    assert ahead is not None
    assert shape(ahead) == [("r", 1)]
    assert len(sequence.block_table) == 2, "there is a block for what comes"
    scheduler.check_integrity()
    sequence.append(7)
    scheduler.settle(ahead)
    scheduler.commit(ahead)
    assert sequence.num_computed_tokens == sequence.num_tokens == 5
    scheduler.check_integrity()


def test_what_comes_to_its_last_token_has_no_step_after_that() -> None:
    scheduler = make_scheduler()
    last, other = make_sequence(3, "last"), make_sequence(3, "other", first_token=50)
    last.params = GenerationParams(max_tokens=1)
    scheduler.add(last)
    scheduler.add(other)
    ahead = scheduler.schedule_ahead(run_step(scheduler))
    assert ahead is not None
    assert shape(ahead) == [("other", 1)]
    scheduler.remove(last)
    other.params = GenerationParams(max_tokens=2)
    other.append(7)
    scheduler.settle(ahead)
    scheduler.commit(ahead)
    assert scheduler.schedule_ahead(ahead) is None, "nothing is left to decode"


def test_what_ended_with_the_tokens_is_left_out() -> None:
    scheduler = make_scheduler()
    sequences = [make_sequence(3, name, first_token=10 * ord(name)) for name in "abc"]
    for sequence in sequences:
        scheduler.add(sequence)
    ahead = scheduler.schedule_ahead(run_step(scheduler))
    assert ahead is not None
    for sequence in sequences:
        sequence.append(7)
    scheduler.remove(sequences[1])
    scheduler.settle(ahead)
    assert shape(ahead) == [("a", 1), ("c", 1)]
    scheduler.check_integrity()


def test_a_block_that_a_step_ahead_filled_is_found_after_its_sequence_has_ended() -> None:
    scheduler = make_scheduler()
    first = make_sequence(3, "first")
    scheduler.add(first)
    ahead = scheduler.schedule_ahead(run_step(scheduler))
    assert ahead is not None
    first.append(3)
    scheduler.settle(ahead)
    scheduler.commit(ahead)
    scheduler.remove(first)
    second = make_sequence(6, "second")  # begins with the same four
    scheduler.add(second)
    scheduler.schedule()
    assert second.num_cached_tokens == 4


def test_nothing_is_made_ahead_of_a_prompt_that_is_not_computed() -> None:
    scheduler = make_scheduler(step_tokens=8)
    scheduler.add(make_sequence(4, "short"))
    step(scheduler)
    scheduler.add(make_sequence(12, "long", first_token=100))
    assert scheduler.schedule_ahead(run_step(scheduler)) is None


def test_nothing_is_made_ahead_of_somebody_who_can_be_admitted() -> None:
    scheduler = make_scheduler(max_num_sequences=2)
    short, long = make_sequence(3, "short"), make_sequence(3, "long", first_token=50)
    short.params = GenerationParams(max_tokens=2)
    scheduler.add(short)
    scheduler.add(long)
    plan = run_step(scheduler)
    scheduler.add(make_sequence(3, "waiting", first_token=90))
    assert scheduler.schedule_ahead(plan) is not None, "nobody leaves a place to it"
    for sequence in (short, long):
        sequence.append(7)
    assert scheduler.schedule_ahead(run_step(scheduler)) is None, "the short one does"
    scheduler.remove(short)
    long.append(7)
    assert [name for name, _ in shape(step(scheduler))] == ["long", "waiting"]


def test_a_free_place_is_a_reason_to_wait_only_where_there_are_blocks_for_who_waits() -> None:
    for num_blocks, is_ahead in ((8, False), (5, True)):
        scheduler = make_scheduler(num_blocks=num_blocks)
        scheduler.add(make_sequence(4))
        plan = run_step(scheduler)
        scheduler.add(make_sequence(16, "waiting", first_token=90))
        assert (scheduler.schedule_ahead(plan) is not None) == is_ahead


def test_nothing_is_made_ahead_of_what_will_never_fit() -> None:
    scheduler = make_scheduler(num_blocks=4)
    scheduler.add(make_sequence(4))
    plan = run_step(scheduler)
    scheduler.add(make_sequence(17, "huge"))
    assert scheduler.schedule_ahead(plan) is None


def test_nothing_is_made_ahead_when_blocks_run_out() -> None:
    scheduler = make_scheduler(num_blocks=3)
    scheduler.add(make_sequence(4, "old"))
    scheduler.add(make_sequence(4, "new", first_token=50))
    assert scheduler.schedule_ahead(run_step(scheduler)) is None
    scheduler.check_integrity()
