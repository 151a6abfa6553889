from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.jobs.planning import Cut, cut_slices


def test_no_requests_make_no_slice() -> None:
    assert cut_slices([], [], 10, 10) == []


def test_a_slice_ends_before_it_passes_the_limit_of_tokens() -> None:
    assert cut_slices([4, 4, 4, 4, 4], [40] * 5, 10, 100) == [Cut(0, 2, 80), Cut(2, 2, 80), Cut(4, 1, 40)]


def test_a_slice_ends_at_the_limit_of_requests() -> None:
    assert [cut.num_requests for cut in cut_slices([1] * 5, [1] * 5, 100, 2)] == [2, 2, 1]


def test_a_request_that_is_larger_than_a_slice_is_one_of_its_own() -> None:
    assert [cut.num_requests for cut in cut_slices([3, 50, 3, 3], [1] * 4, 10, 100)] == [1, 1, 2]


@given(st.lists(st.integers(1, 100), min_size=1), st.integers(1, 300), st.integers(1, 20))
def test_slices_hold_every_request_once_in_order_and_within_the_limits(
    sizes: list[int], slice_tokens: int, slice_requests: int
) -> None:
    num_tokens = [7 * size for size in sizes]
    cuts = cut_slices(sizes, num_tokens, slice_tokens, slice_requests)
    place = 0
    for cut in cuts:
        assert cut.first == place
        members = slice(place, place + cut.num_requests)
        assert 1 <= cut.num_requests <= slice_requests
        assert cut.num_requests == 1 or sum(sizes[members]) <= slice_tokens
        assert cut.num_tokens == sum(num_tokens[members])
        place += cut.num_requests
    assert place == len(sizes)
