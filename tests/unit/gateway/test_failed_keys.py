from __future__ import annotations

from pipeline.gateway import failed_keys
from pipeline.gateway.failed_keys import FailedKeys


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_an_address_gets_its_failures_back_over_a_minute() -> None:
    clock = Clock()
    failed = FailedKeys(6, clock)
    assert [failed.add("10.0.0.1") for _ in range(8)] == [0] * 6 + [10, 10]
    assert failed.add("10.0.0.2") == 0
    clock.now += 9
    assert failed.add("10.0.0.1") == 1
    clock.now += 1
    assert failed.add("10.0.0.1") == 0
    clock.now += 600
    assert [failed.add("10.0.0.1") for _ in range(7)] == [0] * 6 + [10]


def test_addresses_of_one_ipv6_network_count_as_one() -> None:
    failed = FailedKeys(2, Clock())
    assert [failed.add(f"2001:db8:0:1::{host}") for host in (1, 2, 3)] == [0, 0, 30]
    assert failed.add("2001:db8:0:2::1") == 0


def test_no_more_addresses_are_kept_than_there_is_room_for() -> None:
    failed = FailedKeys(1, Clock())
    for number in range(failed_keys._MOST_ADDRESSES + 5):
        failed.add(f"host-{number}")
    assert len(failed._left) == failed_keys._MOST_ADDRESSES
    assert failed.add("host-0") == 0  # forgotten
    assert failed.add(f"host-{failed_keys._MOST_ADDRESSES}") > 0


def test_a_limit_of_0_is_none() -> None:
    failed = FailedKeys(0, Clock())
    assert {failed.add("10.0.0.1") for _ in range(1000)} == {0}
