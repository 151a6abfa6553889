from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.jobs.output_estimates import Length, estimate_output


def lengths(*pairs: tuple[int, int], batch: str = "b") -> list[Length]:
    return [Length(batch, num_tokens, max_tokens) for num_tokens, max_tokens in pairs]


def test_where_nothing_is_known_the_worst_case_is_expected() -> None:
    estimate = estimate_output({(100, 1): 3, (10, 4): 2}, [])

    assert (estimate.p50, estimate.p95, estimate.worst) == (380, 380, 380)
    assert estimate.num_learned_requests == 0


def test_answers_that_always_have_one_length_are_expected_to_have_it() -> None:
    many = [length for number in range(6) for length in lengths(*[(7, 100)] * 10, batch=str(number))]

    estimate = estimate_output({(100, 1): 10, (3, 1): 2}, many)

    assert (estimate.p50, estimate.p95, estimate.worst) == (76, 76, 1006)


def test_an_answer_that_was_cut_counts_as_at_least_so_long() -> None:
    # Of those that were not cut at 10, half end at 20: so do those that were.
    known = lengths((10, 10), (10, 10), (20, 100), (40, 100))

    assert estimate_output({(100, 1): 1}, known).p50 == 30
    assert estimate_output({(30, 1): 1}, known).p50 == 25
    assert estimate_output({(5, 1): 1}, known).p50 == 5


def test_what_was_never_seen_to_end_is_expected_to_go_on() -> None:
    assert estimate_output({(100, 1): 2}, lengths((16, 16), (16, 16))).p50 == 200


def test_each_choice_counts() -> None:
    assert estimate_output({(100, 3): 1}, lengths((7, 100))).p50 == 21


@given(
    st.dictionaries(st.tuples(st.integers(1, 5_000), st.integers(1, 16)), st.integers(1, 1_000), min_size=1),
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 5_000), st.integers(0, 5_000))),
)
def test_the_estimates_are_in_order(bounds: dict[tuple[int, int], int], seen: list[tuple[str, int, int]]) -> None:
    known = [Length(batch, num_tokens, num_tokens + more) for batch, num_tokens, more in seen]

    estimate = estimate_output(bounds, known)

    assert 0 <= estimate.p50 <= estimate.p95 <= estimate.worst
    assert estimate.worst == sum(max_tokens * n * count for (max_tokens, n), count in bounds.items())


@pytest.mark.parametrize("num_batches", [6, 12, 40])
def test_about_half_stay_below_p50_and_about_95_percent_below_p95(num_batches: int) -> None:
    """Of batches whose answers get longer or shorter together, as those of one kind of work do."""
    chance = random.Random(num_batches)

    def draw(bound: int, factor: float) -> int:
        return min(bound, 1 + int(chance.expovariate(1 / (50 * factor))))

    below_p50 = below_p95 = 0
    for _ in range(300):
        known = []
        for number in range(num_batches):
            factor, bound = chance.lognormvariate(0, 0.3), (64, 200)[number % 2]
            known += [Length(str(number), draw(bound, factor), bound) for _ in range(40)]
        estimate = estimate_output({(128, 1): 60, (300, 1): 30}, known)
        factor = chance.lognormvariate(0, 0.3)
        total = sum(draw(128, factor) for _ in range(60)) + sum(draw(300, factor) for _ in range(30))
        below_p50 += total <= estimate.p50
        below_p95 += total <= estimate.p95
    assert 0.40 < below_p50 / 300 < 0.65
    assert 0.90 < below_p95 / 300 < 0.99
