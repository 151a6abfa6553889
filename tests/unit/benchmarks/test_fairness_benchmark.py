from __future__ import annotations

from xml.etree import ElementTree

import pytest

from benchmarks.fairness import Endless, jain
from benchmarks.fairness_plot import draw


def test_jains_index_is_one_for_all_alike_and_a_part_for_one_alone() -> None:
    assert jain([3.0, 3.0, 3.0]) == 1
    assert jain([5.0, 0.0, 0.0, 0.0]) == 0.25
    assert jain([1.0, 2.0]) == pytest.approx(0.9)
    assert jain([0.0, 0.0]) == 1


def test_the_plot_is_svg_with_a_line_for_each_course_and_for_gap_and_bound() -> None:
    def run(claim: str, number: int) -> Endless:
        return Endless(claim, number, 9.0, 50.0, 100.0, 0.99, 9.0, 8.0, [(0.0, 1.0, 0.0), (9.0, 8.0, 9.0)])

    runs = {number: {claim: run(claim, number) for claim in ("share", "arrival")} for number in (2, 10)}
    image = ElementTree.fromstring(draw(runs))
    lines = image.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 4 + 2
    assert all(len((line.get("points") or "").split()) == 2 for line in lines)
