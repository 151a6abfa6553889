from __future__ import annotations

import io
import time
from typing import Any

import pytest
from openai.types import Batch
from rich.console import Console

from pipeline.cli.bars import bars
from pipeline.cli.rendering import duration
from pipeline.cli.watching import PlainLines, Watched, line_of


def batch(number: int = 1, status: str = "in_progress", done: int = 0, total: int = 40, **more: Any) -> Batch:
    return Batch.construct(
        id=f"batch_{number:032x}",
        status=status,
        request_counts={"total": total, "completed": done, "failed": 0},
        usage={"total_tokens": done * 100, "input_tokens": 0, "output_tokens": 0},
        **more,
    )


def watched(*points: tuple[float, int], **more: Any) -> Watched:
    """A batch that had so many requests done at these seconds."""
    one = Watched(batch(**more))
    for now, done in points:
        one.see(batch(done=done, **more), now)
    return one


def rendered(ones: list[Watched], width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(bars(ones, width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_speed_and_time_left_are_those_of_the_last_minute() -> None:
    one = watched((0, 0), (1_000, 10), (1_030, 20), (1_050, 30))
    assert one.tokens_per_second == pytest.approx(20 * 100 / 50)
    assert one.seconds_left(0) == pytest.approx(10 * 50 / 20)
    assert "30/40, 40 tokens/s, 25s left" in line_of(one)


def test_what_the_service_expects_stands_in_while_nothing_is_done() -> None:
    one = watched((0, 0), (10, 0))
    assert one.seconds_left(time.time()) is None
    one.finish_at = 1_000
    assert one.seconds_left(400) == 600
    one.see(batch(pause_reason="client"), 11)
    assert one.seconds_left(400) is None


def test_only_what_stands_still_is_asked_why() -> None:
    one = watched((0, 1), (1, 2))
    assert not one.is_stuck(4.9)
    assert one.is_stuck(5.1)
    one.why = "No group works."
    one.see(batch(done=3), 6)
    assert (one.why, one.is_stuck(7)) == ("", False)
    assert not watched((0, 1), status="completed").is_stuck(100)


def test_without_a_terminal_there_is_a_line_for_each_change_and_no_other() -> None:
    lines: list[str] = []
    display = PlainLines(lines.append)
    one = watched((0, 0))
    for now, done in enumerate((0, 0, 1, 2, 3, 4, 4, 39)):
        one.see(batch(done=done), now)
        display.show([one])
    one.why = "No group works for the model 'tiny'."
    display.show([one])
    one.see(batch(done=40, status="completed"), 9)
    display.show([one])
    assert [line.split()[2].rstrip(",") for line in lines] == ["0/40", "4/40", "39/40", "39/40"]
    assert lines[-1].endswith("No group works for the model 'tiny'")


@pytest.mark.parametrize("width", [20, 40, 59, 60, 80, 109, 110, 200])
def test_bars_fit_any_terminal(width: int) -> None:
    ones = [watched((0, 0), (10, 20)), watched((0, 0), number=2, status="validating", total=0)]
    ones += [watched((0, 40), number=3, status="completed"), watched((0, 0), number=4, pause_reason="client")]
    ones[1].why = "Its input file is being read and planned."
    shown = rendered(ones, width)
    assert all(len(line) <= width for line in shown.splitlines())
    if width >= 40:
        for text in ("50%" if width < 60 else "20/40", "validating", "completed", "read"):
            assert text in shown
        assert ("batch_" + "0" * 31 + "1" in shown) == (width >= 110)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.4, "59s"), (200, "3m20s"), (7_500, "2h05m"), (273_600, "3d4h"), (-5, "0s")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text
