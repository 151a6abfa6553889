from __future__ import annotations

import pytest

from pipeline.schemas.generation import GenerationParams
from workers.engine.block_manager import BlockManager
from workers.engine.sequence import Sequence


def make_sequence(token_ids: list[int], salt: str = "tenant") -> Sequence:
    return Sequence(
        request_id="r",
        index=0,
        params=GenerationParams(max_tokens=8),
        seed=0,
        cache_salt=salt,
        token_ids=list(token_ids),
        num_prompt_tokens=len(token_ids),
    )


def run_whole(blocks: BlockManager, sequence: Sequence) -> None:
    blocks.admit(sequence, blocks.find_prefix(sequence))
    blocks.allocate(sequence, sequence.num_tokens)
    sequence.num_computed_tokens = sequence.num_tokens


def test_a_prefix_is_found_again_after_its_sequence_left() -> None:
    blocks = BlockManager(8, 4)
    first = make_sequence(list(range(10)))
    run_whole(blocks, first)
    blocks.deallocate(first)
    second = make_sequence([*range(8), 99, 98])
    assert len(blocks.find_prefix(second)) == 2
    run_whole(blocks, second)
    assert second.num_computed_tokens == 10
    blocks.check_integrity([second])


def test_a_prefix_in_use_is_shared_and_counted_twice() -> None:
    blocks = BlockManager(8, 4)
    first, second = make_sequence(list(range(9))), make_sequence(list(range(9)))
    run_whole(blocks, first)
    run_whole(blocks, second)
    assert first.block_table[:2] == second.block_table[:2]
    assert first.block_table[2] != second.block_table[2]
    assert blocks.num_referenced_blocks == 4
    blocks.check_integrity([first, second])
    blocks.deallocate(first)
    blocks.check_integrity([second])


def test_the_last_token_is_never_taken_from_the_cache() -> None:
    blocks = BlockManager(8, 4)
    first = make_sequence(list(range(8)))
    run_whole(blocks, first)
    assert len(blocks.find_prefix(make_sequence(list(range(8))))) == 1
    assert len(blocks.find_prefix(make_sequence(list(range(9))))) == 2


def test_another_salt_finds_nothing() -> None:
    blocks = BlockManager(8, 4)
    run_whole(blocks, make_sequence(list(range(9)), salt="one"))
    assert blocks.find_prefix(make_sequence(list(range(9)), salt="another")) == []


def test_equal_blocks_after_different_prefixes_are_different() -> None:
    blocks = BlockManager(8, 4)
    run_whole(blocks, make_sequence([1, 1, 1, 1, 5, 5, 5, 5, 0]))
    run_whole(blocks, make_sequence([2, 2, 2, 2, 6, 6, 6, 6, 0]))
    assert len(blocks.find_prefix(make_sequence([2, 2, 2, 2, 5, 5, 5, 5, 0]))) == 1


def test_tokens_whose_hashes_collide_are_told_apart() -> None:
    blocks = BlockManager(8, 1)
    assert hash((-1,)) == hash((-2,)), "Python hashes -1 and -2 alike, which makes a collision for this test"
    run_whole(blocks, make_sequence([-1, 7]))
    assert blocks.find_prefix(make_sequence([-2, 7])) == []
    assert len(blocks.find_prefix(make_sequence([-1, 7]))) == 1


def test_the_least_recently_used_is_evicted_first_and_tails_before_prefixes() -> None:
    blocks = BlockManager(4, 2)
    old, new = make_sequence([1, 2, 3, 4]), make_sequence([5, 6, 7, 8])
    for sequence in (old, new):
        run_whole(blocks, sequence)
        blocks.deallocate(sequence)
    run_whole(blocks, make_sequence([9, 9]))
    assert len(blocks.find_prefix(make_sequence([1, 2, 3, 4, 0]))) == 1
    assert len(blocks.find_prefix(make_sequence([5, 6, 7, 8, 0]))) == 2
    run_whole(blocks, make_sequence([9, 8]))
    assert blocks.find_prefix(make_sequence([1, 2, 3, 4, 0])) == []
    assert len(blocks.find_prefix(make_sequence([5, 6, 7, 8, 0]))) == 2


def test_a_prefix_that_was_found_before_is_found_as_it_is_now() -> None:
    blocks = BlockManager(4, 2)
    waiting = make_sequence([1, 2, 3, 4, 5, 6, 0])
    first = make_sequence([1, 2, 3, 4])
    run_whole(blocks, first)
    assert len(blocks.find_prefix(waiting)) == 2
    longer = make_sequence([1, 2, 3, 4, 5, 6])
    run_whole(blocks, longer)
    assert len(blocks.find_prefix(waiting)) == 3, "it grew"
    blocks.deallocate(longer)
    blocks.deallocate(first)
    run_whole(blocks, make_sequence([7, 8, 9, 9]))
    assert len(blocks.find_prefix(waiting)) == 2, "its end was evicted"
    run_whole(blocks, make_sequence([9, 9, 9, 9]))
    assert blocks.find_prefix(waiting) == [], "all of it was"


def test_a_block_that_was_never_cached_is_taken_before_any_that_was() -> None:
    blocks = BlockManager(3, 2)
    cached, partial = make_sequence([1, 2]), make_sequence([3])
    run_whole(blocks, cached)
    blocks.deallocate(cached)
    run_whole(blocks, partial)
    blocks.deallocate(partial)
    for _ in range(2):
        run_whole(blocks, make_sequence([9]))
    assert len(blocks.find_prefix(make_sequence([1, 2, 0]))) == 1


def test_two_that_compute_the_same_at_once_keep_their_own_blocks() -> None:
    blocks = BlockManager(8, 2)
    first, second = make_sequence([1, 2, 3]), make_sequence([1, 2, 3])
    for sequence in (first, second):
        blocks.admit(sequence, [])
    for sequence in (first, second):
        blocks.allocate(sequence, 3)
    assert set(first.block_table).isdisjoint(second.block_table)
    for sequence in (first, second):
        sequence.append(4)
        blocks.allocate(sequence, 4)
    blocks.check_integrity([first, second])
    assert len(blocks.find_prefix(make_sequence([1, 2, 3, 4, 5]))) == 2


def test_what_was_forgotten_is_not_found() -> None:
    blocks = BlockManager(8, 2)
    sequence = make_sequence([1, 2, 3, 4, 5])
    run_whole(blocks, sequence)
    blocks.forget(sequence)
    blocks.deallocate(sequence)
    assert blocks.find_prefix(make_sequence([1, 2, 3, 4, 5])) == []
    blocks.check_integrity([])


def test_a_cache_without_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="0 blocks"):
        BlockManager(0, 16)


def fill_with_finished(blocks: BlockManager, num_sequences: int) -> None:
    """Sequences of two blocks each that have come and gone, all of them cached."""
    for number in range(num_sequences):
        sequence = make_sequence([number] * 8)
        run_whole(blocks, sequence)
        blocks.deallocate(sequence)


def test_blocks_with_memory_are_used_before_anything_cached_is_given_up() -> None:
    blocks = BlockManager(8, 4)
    fill_with_finished(blocks, 4)
    assert [len(blocks.find_prefix(make_sequence([number] * 9))) for number in range(4)] == [2, 2, 2, 2]


def test_while_memory_is_fresh_what_is_cached_is_given_up_first() -> None:
    num_populated = 4
    blocks = BlockManager(64, 4, lambda: num_populated)
    fill_with_finished(blocks, 10)
    assert [len(blocks.find_prefix(make_sequence([number] * 9))) for number in range(8, 10)] == [2, 2]
    assert len(blocks.find_prefix(make_sequence([0] * 9))) == 0
    num_populated = 64
    fill_with_finished(blocks, 10)
    assert all(len(blocks.find_prefix(make_sequence([number] * 9))) == 2 for number in range(10))
    blocks.check_integrity([])


def test_fresh_memory_is_taken_once_little_is_left_that_is_cached() -> None:
    blocks = BlockManager(64, 4, lambda: 0)
    fill_with_finished(blocks, 1)
    kept = [make_sequence([100 + number] * 8) for number in range(30)]
    for sequence in kept:
        run_whole(blocks, sequence)
    assert blocks.num_referenced_blocks == 60
    assert blocks.num_unreferenced_blocks == 4
    blocks.check_integrity(kept)
    more = make_sequence([7] * 16)
    run_whole(blocks, more)  # the last there are
    blocks.check_integrity([*kept, more])
    assert not blocks.can_allocate(make_sequence([8]), 1)
