"""How long a model's matrices take, by the number of rows, at the best of the ways that there are; in seconds."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.steps import Matrix, WorkStep

#: Rows that are measured where a workload has too many different ones.
GRID = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
#: So many different numbers of rows are measured as they are.
_MAX_EXACT = 12


@dataclass(frozen=True)
class GemmTimes:
    """Of one multiplication each: method -> matrix name -> rows -> seconds, infinite where nobody waited for it."""

    by_method: Mapping[str, Mapping[str, Mapping[int, float]]]

    def seconds(self, matrix: str, rows: int) -> float:
        """The best method's time. Between measured rows it is interpolated; beyond them it grows with the rows."""
        if rows == 0:
            return 0.0
        return min(_interpolate(times[matrix], rows) for times in self.by_method.values() if matrix in times)

    def floor(self, matrices: Iterable[Matrix], steps: Sequence[WorkStep]) -> float:
        """Seconds that the matrices of these steps take at least: of everything else, nothing is counted."""
        return sum(
            matrix.count * self.seconds(matrix.name, matrix.num_rows(step)) for matrix in matrices for step in steps
        )


def rows_to_measure(rows: Iterable[int]) -> list[int]:
    """The rows themselves where they are few, or else those of GRID that lie around them."""
    distinct = sorted(set(rows) - {0})
    if len(distinct) <= _MAX_EXACT or not distinct:
        return distinct
    first = max(0, bisect_left(GRID, distinct[0] + 1) - 1)
    last = min(len(GRID) - 1, bisect_left(GRID, distinct[-1]))
    return list(GRID[first : last + 1])


def _interpolate(times: Mapping[int, float], rows: int) -> float:
    measured = sorted(times)
    index = bisect_left(measured, rows)
    if index == len(measured):
        return times[measured[-1]] * rows / measured[-1]
    # More rows can be quicker than fewer; fewer can then be done as more.
    above = min(times[each] for each in measured[index:])
    if index == 0 or measured[index] == rows:
        return above
    low, high = measured[index - 1], measured[index]
    if math.inf in (times[low], times[high]):
        return above
    share = (rows - low) / (high - low)
    return min(above, times[low] + share * (times[high] - times[low]))
