from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.workloads import NAMES, fewest_prompt_tokens, make_workload


@pytest.mark.parametrize(
    ("name", "num_requests", "num_prompt_tokens", "num_output_tokens"),
    [("W1", 32, 4096, 2048), ("W2", 32, 4096, 1024), ("W4", 256, 256 * 416, 4096), ("W5", 1, 128, 64)],
)
def test_a_workload_has_the_size_that_its_table_says(
    name: str, num_requests: int, num_prompt_tokens: int, num_output_tokens: int
) -> None:
    workload = make_workload(name)
    assert len(workload.requests) == num_requests
    assert (workload.num_prompt_tokens, workload.num_output_tokens) == (num_prompt_tokens, num_output_tokens)


@pytest.mark.parametrize("name", NAMES)
def test_a_workload_is_the_same_whenever_it_is_made(name: str) -> None:
    assert make_workload(name) == make_workload(name)


def test_another_seed_draws_other_tokens_of_the_same_lengths() -> None:
    first, second = make_workload("W3", seed=0), make_workload("W3", seed=1)
    assert [len(r.prompt_token_ids) for r in first.requests] == [len(r.prompt_token_ids) for r in second.requests]
    assert [r.max_tokens for r in first.requests] == [r.max_tokens for r in second.requests]
    shared = fewest_prompt_tokens([r.prompt_token_ids for r in (*first.requests, *second.requests)])
    assert shared > 0.99 * (first.num_prompt_tokens + second.num_prompt_tokens)


def test_lengths_of_the_mixed_workload_lie_within_its_bounds_and_differ() -> None:
    workload = make_workload("W3")
    prompts = [len(request.prompt_token_ids) for request in workload.requests]
    outputs = [request.max_tokens for request in workload.requests]
    assert min(prompts) >= 32
    assert max(prompts) <= 256
    assert min(outputs) >= 16
    assert max(outputs) <= 96
    assert len(set(prompts)) > 20


def test_families_share_their_first_tokens_and_arrive_mixed() -> None:
    workload = make_workload("W4")
    families = [request.prompt_token_ids[:384] for request in workload.requests]
    assert sorted(Counter(families).values()) == [32] * 8
    assert workload.fewest_prompt_tokens == 8 * 384 + 256 * 32
    assert len(set(families[:16])) > 1
    assert families != [family for family in dict.fromkeys(families) for _ in range(32)]


def test_a_workload_can_be_made_several_times_as_large() -> None:
    assert make_workload("W1", repeat=10).num_tokens == 10 * make_workload("W1").num_tokens


def test_an_unknown_workload_is_refused_with_the_names_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"'W9'.*W1, W2"):
        make_workload("W9")


def test_a_prefix_counts_once() -> None:
    assert fewest_prompt_tokens([[1, 2, 3], [1, 2, 4], [5]]) == 5
    assert fewest_prompt_tokens([[1, 2], [1, 2]]) == 2
    assert fewest_prompt_tokens([[1, 2], [1, 2, 3]]) == 3
