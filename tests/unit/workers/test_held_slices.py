from __future__ import annotations

from datetime import UTC, datetime

from pipeline.jobs.claiming import ClaimedSlice, PlannedRequest
from pipeline.schemas.generation import GenerationParams
from pipeline.tables.requests import OutcomeKind
from pipeline.tables.slices import AttemptEnd
from workers.held_slices import HeldSlice, HeldSlices, InFlight


def request(number: int, *, exposures: int = 0, n: int = 1) -> PlannedRequest:
    return PlannedRequest(number, f"c{number}", [1], GenerationParams(max_tokens=1, n=n), exposures)


def hold(held_slices: HeldSlices, slice_id: int, *requests: PlannedRequest) -> HeldSlice:
    assert held_slices.reserve(timeout=0)
    claimed = ClaimedSlice(slice_id, 3, "g", "b", 0, datetime.now(UTC), "t", "k", "tiny", "/v1/completions")
    held = held_slices.hold(claimed, requests)
    assert held is not None
    return held


def take(held_slices: HeldSlices) -> InFlight | None:
    return held_slices.take_next(timeout=0)


def take_ids(held_slices: HeldSlices) -> list[str]:
    ids = []
    while (entered := take(held_slices)) is not None:
        ids.append(entered.id)
    return ids


def test_older_slices_are_fed_first_in_planned_order() -> None:
    held_slices = HeldSlices(max_slices=2, max_sequences=10)
    hold(held_slices, 20, request(4), request(5))
    hold(held_slices, 10, request(1))
    assert take_ids(held_slices) == ["4.3", "5.3", "1.3"]


def test_no_more_slices_are_reserved_than_there_is_room_for() -> None:
    held_slices = HeldSlices(max_slices=2, max_sequences=10)
    held = hold(held_slices, 1, request(1))
    assert held_slices.reserve(timeout=0)
    assert not held_slices.reserve(timeout=0)
    held_slices.release()
    assert held_slices.reserve(timeout=0)
    held_slices.release()
    held_slices.end(held, AttemptEnd.FINISHED)
    assert held_slices.reserve(timeout=0)


def fill(held_slices: HeldSlices, *requests: PlannedRequest) -> list[HeldSlice]:
    """Hold slices like this as long as there is room."""
    slices: list[HeldSlice] = []
    while held_slices.num_wanted > len(slices):
        slices.append(hold(held_slices, len(slices) + 1, *requests))
    return slices


def test_many_small_slices_are_held_until_they_fill_the_engine() -> None:
    held_slices = HeldSlices(max_slices=100, max_sequences=20)
    slices = fill(held_slices, request(1), request(2, n=2))
    assert len(slices) == 7
    assert not held_slices.reserve(timeout=0)
    held_slices.end(slices[0], AttemptEnd.RETURNED)
    assert held_slices.num_wanted == 6 + 3


def test_a_few_slices_are_held_whatever_is_in_them() -> None:
    held_slices = HeldSlices(max_slices=100, max_sequences=2)
    assert len(fill(held_slices, *(request(number) for number in range(50)))) == 3
    assert len(fill(HeldSlices(max_slices=2, max_sequences=2), request(1))) == 2


def test_long_requests_fill_the_cache_of_the_engine() -> None:
    held_slices = HeldSlices(max_slices=100, max_sequences=1000)
    held_slices.limit_tokens(40)
    assert len(fill(held_slices, request(1), request(2), request(3), request(4))) == 5


def test_what_left_the_engine_makes_room_and_what_is_put_back_takes_it() -> None:
    held_slices = HeldSlices(max_slices=100, max_sequences=4)
    held, *_ = [hold(held_slices, number, request(number)) for number in range(1, 5)]
    assert held_slices.num_wanted == 0
    assert take_ids(held_slices) == ["1.3", "2.3", "3.3", "4.3"]
    held_slices.settle("1.3")
    assert held_slices.num_wanted == 4 + 3, "recording takes no room in the engine"
    held_slices.put_back(held, [request(1)])
    assert held_slices.num_wanted == 0


def test_no_more_slices_are_on_their_way_in_than_a_few() -> None:
    held_slices = HeldSlices(max_slices=100, max_sequences=100)
    assert [held_slices.reserve(timeout=0) for _ in range(4)] == [True, True, True, False]
    for _ in range(3):
        held_slices.release()
    assert held_slices.reserve(timeout=0)


def test_a_closed_group_wants_nothing() -> None:
    held_slices = HeldSlices(max_slices=100, max_sequences=4)
    assert held_slices.num_wanted == 3
    held_slices.close()
    assert held_slices.num_wanted == 0


def test_sequences_in_the_engine_are_bounded_and_choices_count() -> None:
    held_slices = HeldSlices(max_slices=1, max_sequences=4)
    hold(held_slices, 1, request(1, n=3), request(2, n=2), request(3, n=9))
    assert take_ids(held_slices) == ["1.3"]
    assert held_slices.settle("1.3") is not None
    assert take_ids(held_slices) == ["2.3"]
    assert held_slices.settle("2.3") is not None
    assert take_ids(held_slices) == ["3.3"]


def test_a_suspect_waits_for_an_empty_engine_and_nothing_goes_beside_it() -> None:
    held_slices = HeldSlices(max_slices=2, max_sequences=10)
    hold(held_slices, 1, request(1))
    assert take_ids(held_slices) == ["1.3"]
    hold(held_slices, 2, request(2), request(3, exposures=2), request(4, exposures=2))
    assert take(held_slices) is None
    held_slices.settle("1.3")
    suspect = take(held_slices)
    assert suspect is not None
    assert (suspect.id, suspect.is_alone) == ("3.3", True)
    assert take(held_slices) is None
    held_slices.settle("3.3")
    assert take_ids(held_slices) == ["4.3"]
    held_slices.settle("4.3")
    assert take_ids(held_slices) == ["2.3"]


def test_what_is_put_back_goes_before_what_waits() -> None:
    held_slices = HeldSlices(max_slices=1, max_sequences=3)
    held = hold(held_slices, 1, *(request(number) for number in range(1, 6)))
    assert take_ids(held_slices) == ["1.3", "2.3", "3.3"]
    for engine_id in ("3.3", "1.3"):
        held_slices.settle(engine_id)
    assert held_slices.put_back(held, [request(3), request(1)]) == ()
    held_slices.settle("2.3")
    assert take_ids(held_slices) == ["1.3", "3.3", "4.3"]


def test_a_batch_that_ends_early_stops_what_waits_what_runs_and_what_would_run_again() -> None:
    held_slices = HeldSlices(max_slices=1, max_sequences=2)
    held = hold(held_slices, 1, request(1), request(2), request(3))
    assert take_ids(held_slices) == ["1.3", "2.3"]
    waiting, running = held_slices.end_early(held, OutcomeKind.CANCELLED)
    assert [one.id for one in waiting] == [3]
    assert running == ["1.3", "2.3"]
    assert held_slices.end_early(held, OutcomeKind.EXPIRED) == ([], [])
    held_slices.settle("1.3")
    assert held_slices.put_back(held, [request(1)]) == [request(1)]
    assert held.ending is OutcomeKind.CANCELLED


def test_outcomes_of_a_slice_that_ended_are_nobodys() -> None:
    held_slices = HeldSlices(max_slices=1, max_sequences=2)
    held = hold(held_slices, 1, request(1), request(2), request(3))
    take_ids(held_slices)
    assert held_slices.end(held, AttemptEnd.LOST) == ["1.3", "2.3"]
    assert held.ended.is_set()
    assert held_slices.settle("1.3") is None
    assert held_slices.settle("unknown") is None
    assert not held_slices.wait_until_settled(timeout=0)
    held_slices.settle("2.3")
    assert held_slices.wait_until_settled(timeout=0)
    assert held_slices.end(held, AttemptEnd.FINISHED) == []
    assert held.end is AttemptEnd.LOST


def test_settled_means_recorded() -> None:
    held_slices = HeldSlices(max_slices=1, max_sequences=2)
    hold(held_slices, 1, request(1))
    take(held_slices)
    held_slices.settle("1.3")
    assert not held_slices.wait_until_settled(timeout=0)
    held_slices.recorded(1)
    assert held_slices.wait_until_settled(timeout=0)
    assert not held_slices.expects_outcomes()


def test_a_closed_group_takes_nothing_in_and_feeds_nothing() -> None:
    held_slices = HeldSlices(max_slices=2, max_sequences=4)
    held = hold(held_slices, 1, request(1), request(2))
    assert take(held_slices) is not None
    assert held_slices.reserve(timeout=0)
    held_slices.close()
    assert held_slices.hold(held.claimed, [request(9)]) is None
    assert take(held_slices) is None
    assert not held_slices.reserve(timeout=0)
    assert held_slices.in_flight_ids() == ["1.3"]
