from __future__ import annotations

from workers.backends.crash_window import LARGEST_BACKOFF_SECONDS, CrashWindow


def test_each_crash_after_the_first_doubles_the_wait_up_to_the_largest() -> None:
    crashes = CrashWindow(max_crashes=100, seconds=60.0)
    waits = [crashes.backoff_seconds]
    for _ in range(9):
        crashes.add(now=1.0)
        waits.append(crashes.backoff_seconds)

    assert waits == [0.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, LARGEST_BACKOFF_SECONDS, LARGEST_BACKOFF_SECONDS]


def test_what_is_longer_ago_than_the_window_does_not_count() -> None:
    crashes = CrashWindow(max_crashes=3, seconds=60.0)
    for now in (0.0, 30.0, 60.5, 90.5):
        crashes.add(now)
        assert not crashes.is_full

    crashes.add(90.5)

    assert crashes.is_full
    assert len(crashes) == 3
