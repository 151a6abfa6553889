from __future__ import annotations

import pytest

from pipeline.schemas.windows import window_seconds


@pytest.mark.parametrize(
    ("window", "seconds"), [("24h", 86_400), ("15m", 900), ("90m", 5_400), ("1h", 3_600), ("7d", 604_800)]
)
def test_a_window_has_a_length(window: str, seconds: int) -> None:
    assert window_seconds(window) == seconds


@pytest.mark.parametrize(
    "window", ["", "24", "h", "14m", "0h", "8d", "169h", "-1h", "1.5h", "24H", "24h ", "٢h", "9999999h"]
)
def test_a_window_that_is_none_says_what_one_is(window: str) -> None:
    with pytest.raises(ValueError, match="is no completion window: give '24h'"):
        window_seconds(window)
