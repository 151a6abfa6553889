from __future__ import annotations

import pytest

from workers.backends.cores import SPIN_COUNT, Cores


@pytest.mark.parametrize(
    ("num_ranks", "cores", "own"),
    [
        (2, [0, 1], ((0,), (1,))),
        (2, [4, 5, 6, 7], ((4, 5), (6, 7))),
        (3, [0, 2, 9], ((0,), (2,), (9,))),
    ],
)
def test_ranks_that_take_all_cores_are_pinned_to_their_shares(
    num_ranks: int, cores: list[int], own: tuple[tuple[int, ...], ...]
) -> None:
    divided = Cores.divide(num_ranks, cores, {})
    assert divided.own == own
    assert divided.of_rank(1) == own[1]
    assert divided.are_enough
    assert divided.num_threads == len(cores) // num_ranks


@pytest.mark.parametrize(
    ("num_ranks", "environment"),
    [
        (1, {}),  # it may be one of several groups
        (3, {}),  # one core is left over
        (8, {}),  # too few cores
        (2, {"OMP_NUM_THREADS": "1"}),
        (2, {"OMP_PROC_BIND": "false"}),
        (2, {"GOMP_CPU_AFFINITY": "0-3"}),
    ],
)
def test_ranks_are_not_pinned_where_others_may_need_the_same_cores_or_somebody_decided(
    num_ranks: int, environment: dict[str, str]
) -> None:
    divided = Cores.divide(num_ranks, [0, 1, 2, 3], environment)
    assert divided.own == ()
    assert divided.of_rank(0) == ()


def test_more_ranks_than_cores_have_one_thread_each_and_know_that_they_share() -> None:
    divided = Cores.divide(4, [0, 1], {})
    assert divided.num_threads == 1
    assert not divided.are_enough


@pytest.mark.parametrize("told", ["", "0", "many"])
def test_a_number_of_threads_that_is_none_is_passed_over(told: str) -> None:
    assert Cores.divide(1, [0, 1, 2], {"OMP_NUM_THREADS": told}).num_threads == 3


def test_threads_spin_shortly_unless_told_how_to_wait() -> None:
    divided = Cores.divide(1, [0, 1], {})
    assert divided.environment({})["GOMP_SPINCOUNT"] == str(SPIN_COUNT)
    assert "GOMP_SPINCOUNT" not in divided.environment({"OMP_WAIT_POLICY": "ACTIVE"})
