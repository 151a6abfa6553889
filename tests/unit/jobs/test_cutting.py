from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.jobs.planning import Cut, Order, cut_slices, num_shared_tokens
from pipeline.tokenization import pack_token_ids


def order_of(sizes: list[int], num_tokens: list[int] | None = None, shared: list[int] | None = None) -> Order:
    return Order(
        lines=list(range(1, len(sizes) + 1)),
        num_tokens=num_tokens or [1] * len(sizes),
        sizes=sizes,
        shared=shared or [0] * len(sizes),
    )


def lengths(cuts: list[Cut]) -> list[int]:
    return [cut.num_requests for cut in cuts]


def test_no_requests_make_no_slice() -> None:
    assert cut_slices(order_of([]), 10, 10) == []


def test_a_slice_ends_before_it_passes_the_limit_of_tokens() -> None:
    assert cut_slices(order_of([4] * 5, [40] * 5), 10, 100) == [Cut(0, 2, 80), Cut(2, 2, 80), Cut(4, 1, 40)]


def test_a_slice_ends_at_the_limit_of_requests() -> None:
    assert lengths(cut_slices(order_of([1] * 5), 100, 2)) == [2, 2, 1]


def test_a_request_that_is_larger_than_a_slice_is_one_of_its_own() -> None:
    assert lengths(cut_slices(order_of([3, 50, 3, 3]), 10, 100)) == [1, 1, 2]


def families(*sizes: int) -> list[int]:
    """What requests have in common with the one before, in families of so many that share 64 tokens."""
    return [0 if member == 0 else 64 for size in sizes for member in range(size)]


def test_a_family_is_not_split_where_a_slice_can_end_before_it() -> None:
    order = order_of([1] * 40, shared=families(17, 15, 8))
    assert lengths(cut_slices(order, 20, 100)) == [17, 15, 8]
    assert lengths(cut_slices(order, 100, 20)) == [17, 15, 8], "by requests as by tokens"


def test_a_slice_is_not_cut_short_by_more_than_a_quarter() -> None:
    order = order_of([1] * 40, shared=families(14, 26))
    assert lengths(cut_slices(order, 20, 100)) == [20, 20]


def test_of_equal_places_the_last_wins() -> None:
    assert lengths(cut_slices(order_of([1] * 40), 20, 100)) == [20, 20]


def test_a_cut_goes_where_the_least_is_shared_of_what_must_be_split() -> None:
    shared = [48] * 40
    shared[16], shared[18] = 32, 16
    assert lengths(cut_slices(order_of([1] * 40, shared=shared), 20, 100)) == [18, 20, 2]


def test_what_is_shared_counts_in_whole_pieces() -> None:
    before = pack_token_ids(range(40))
    for num_common, expected in ((0, 0), (15, 0), (16, 16), (31, 16), (32, 32), (40, 32)):
        after = pack_token_ids([*range(num_common), *range(1000, 1010)])
        assert num_shared_tokens(before, after) == expected
    assert num_shared_tokens(b"", before) == num_shared_tokens(before, b"") == 0
    assert num_shared_tokens(before, before) == 32
    assert num_shared_tokens(pack_token_ids([256] * 16), pack_token_ids([1] * 16)) == 0


@given(st.lists(st.tuples(st.integers(1, 100), st.integers(0, 4)), min_size=1), st.integers(1, 300), st.integers(1, 20))
def test_slices_hold_every_request_once_in_order_and_within_the_limits(
    requests: list[tuple[int, int]], slice_tokens: int, slice_requests: int
) -> None:
    sizes = [size for size, _ in requests]
    num_tokens = [7 * size for size in sizes]
    order = order_of(sizes, num_tokens, [16 * num for _, num in requests])
    cuts = cut_slices(order, slice_tokens, slice_requests)
    place = 0
    for cut in cuts:
        assert cut.first == place
        members = slice(place, place + cut.num_requests)
        assert 1 <= cut.num_requests <= slice_requests
        assert cut.num_requests == 1 or sum(sizes[members]) <= slice_tokens
        assert cut.num_tokens == sum(num_tokens[members])
        place += cut.num_requests
        if place < len(sizes):
            is_full = sum(sizes[members]) + sizes[place] > slice_tokens or cut.num_requests == slice_requests
            is_nearly = 4 * sum(sizes[members]) >= 3 * slice_tokens or 4 * cut.num_requests >= 3 * slice_requests
            assert is_full or is_nearly, "a slice is too short"
    assert place == len(sizes)
