"""The plot of `benchmarks.fairness`, as SVG without a library: service over time, and gaps against their bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from benchmarks.fairness import Endless

_WIDTH: Final = 380
_HEIGHT: Final = 250
_LEFT: Final = 62
_BOTTOM: Final = 40
_TOP: Final = 46
_RIGHT: Final = 12
_COLOURS: Final = ("#1b6ca8", "#d1495b", "#1b6ca8", "#d1495b")

Line = tuple[str, Sequence[tuple[float, float]], str, bool]


def draw(runs: Mapping[int, Mapping[str, Endless]]) -> str:
    """Runs by number of tenants and by claim. The first number's courses, and everyone's gaps."""
    first = runs[min(runs)]
    courses: list[Line] = []
    for claim, is_dashed in (("share", False), ("arrival", True)):
        if claim in first:
            for place in (1, 2):
                points = [(point[0], point[place]) for point in first[claim].course]
                courses.append((f"tenant {place}, by {claim}", points, _COLOURS[place - 1], is_dashed))
    places = sorted(runs)
    by_share = [runs[number]["share"] for number in places]
    gaps: list[Line] = [
        ("bound", [(place, run.bound) for place, run in enumerate(by_share)], "#888888", True),
        ("greatest gap", [(place, run.greatest_gap) for place, run in enumerate(by_share)], "#1b6ca8", False),
    ]
    panels = [
        _panel(0, f"Service of {min(runs)} tenants with endless work", "simulated seconds", courses, None),
        _panel(_WIDTH, "Greatest service gap", "tenants", gaps, [str(n) for n in places]),
    ]
    size = f'width="{2 * _WIDTH}" height="{_HEIGHT}" viewBox="0 0 {2 * _WIDTH} {_HEIGHT}"'
    style = 'font-family="sans-serif" font-size="10"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{"".join(panels)}</svg>\n'
    )


def _panel(x: int, title: str, below: str, lines: Sequence[Line], ticks: Sequence[str] | None) -> str:
    points = [point for _, line, _, _ in lines for point in line]
    greatest_x = max((point[0] for point in points), default=1) or 1
    greatest_y = 1.15 * max((point[1] for point in points), default=1) or 1
    across, up = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(point: tuple[float, float]) -> tuple[float, float]:
        return x + _LEFT + across * point[0] / greatest_x, _TOP + up * (1 - point[1] / greatest_y)

    parts = [f'<text x="{x + _LEFT}" y="14" font-size="12">{title}</text>']
    parts.append(f'<text x="{x + _LEFT + across / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{below}</text>')
    for share in (0, 0.5, 1):
        _, y = at((0, share * greatest_y))
        parts.append(f'<line x1="{x + _LEFT}" x2="{x + _WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{x + _LEFT - 4}" y="{y + 3:.1f}" text-anchor="end">{_short(share * greatest_y)}</text>')
    labels = ticks or [_short(share * greatest_x) for share in (0, 0.5, 1)]
    for place, label in enumerate(labels):
        left = x + _LEFT + across * place / max(1, len(labels) - 1)
        parts.append(f'<text x="{left:.1f}" y="{_HEIGHT - 22}" text-anchor="middle">{label}</text>')
    for place, (name, line, colour, is_dashed) in enumerate(lines):
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in map(at, line))
        dash = ' stroke-dasharray="4 3"' if is_dashed else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dash}/>')
        y = 26 + 12 * (place // 2)
        left = x + _LEFT + 6 + (place % 2) * across / 2
        parts.append(f'<line x1="{left}" x2="{left + 16}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"{dash}/>')
        parts.append(f'<text x="{left + 20}" y="{y + 3}">{name}</text>')
    return "\n".join(parts) + "\n"


def _short(number: float) -> str:
    for limit, letter in ((1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{letter}"
    return f"{number:.3g}"
