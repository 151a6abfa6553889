"""How many completion tokens a batch will take, learned from what like requests took.

Answers that were cut at max_tokens only say "at least so many", so lengths are estimated as lifetimes are: by the
product-limit estimator (Kaplan and Meier, 1958), for which a cut answer is a censored one. From the survival function
S, the mean of a length cut at b is the sum of S(t) over 0 <= t < b, the mean of its square that of (2t + 1) S(t).

Requests of a batch resemble one another, so that a batch is off by more than independent draws would be: the spread of
past batches around what was to be expected of them, as a factor, is added. These are counts of tokens, and no money.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import ceil, exp, log, sqrt
from statistics import fmean, variance

#: Standard deviations from the middle of a normal distribution to its 95th percentile.
_P95 = 1.6449
#: How far a batch as a whole is off, as the logarithm of a factor, where too few batches are known to tell.
_UNKNOWN_SPREAD = 0.2
#: Batches from which their spread is learned.
_LEAST_BATCHES = 5


@dataclass(frozen=True, slots=True)
class Length:
    """One finished answer, per choice."""

    batch_id: str
    num_tokens: int
    #: Of the request; an answer that has so many was cut.
    max_tokens: int

    @property
    def is_cut(self) -> bool:
        return self.num_tokens >= self.max_tokens


@dataclass(frozen=True, slots=True)
class OutputEstimate:
    """Completion tokens of a batch, over all choices; p50 <= p95 <= worst."""

    p50: int
    p95: int
    worst: int
    #: 0: nothing was known, and all three are the worst case.
    num_learned_requests: int


def estimate_output(bounds: Mapping[tuple[int, int], int], lengths: Sequence[Length]) -> OutputEstimate:
    """`bounds` counts the requests of the batch by (max_tokens, n); `lengths` are of like requests."""
    worst = sum(max_tokens * n * count for (max_tokens, n), count in bounds.items())
    if not lengths:
        return OutputEstimate(worst, worst, worst, 0)
    model = _Lengths.learn(lengths)
    mean = sum(count * n * model.mean(max_tokens) for (max_tokens, n), count in bounds.items())
    # The choices of a request count as one draw, which errs on the side of more.
    spread = sum(count * n**2 * model.variance(max_tokens) for (max_tokens, n), count in bounds.items())
    deviation = sqrt(spread / mean**2 + _spread_of_batches(model, lengths) ** 2) if mean > 0 else 0.0
    p50, p95 = ceil(mean), ceil(mean * exp(_P95 * deviation))
    return OutputEstimate(min(p50, worst), min(p95, worst), worst, len(lengths))


class _Lengths:
    """The survival function, as steps."""

    def __init__(self, ends: Sequence[int], survival: Sequence[float]) -> None:
        #: S(t) is `survival[i]` for ends[i - 1] <= t < ends[i], and the last one after all ends.
        self._ends = ends
        self._survival = survival
        widths = [(start, end) for start, end in pairwise([0, *ends])]
        steps = list(zip(widths, survival, strict=False))
        self._sums = list(accumulate(((end - start) * s for (start, end), s in steps), initial=0.0))
        self._squares = list(accumulate(((end**2 - start**2) * s for (start, end), s in steps), initial=0.0))

    @classmethod
    def learn(cls, lengths: Iterable[Length]) -> _Lengths:
        ended: Counter[int] = Counter()
        leaving: Counter[int] = Counter()
        for length in lengths:
            leaving[length.num_tokens] += 1
            if not length.is_cut:
                ended[length.num_tokens] += 1
        at_risk, alive = leaving.total(), 1.0
        ends, survival = [], [1.0]
        for num_tokens in sorted(leaving):
            if ended[num_tokens]:
                alive *= 1 - ended[num_tokens] / at_risk
                ends.append(num_tokens)
                survival.append(alive)
            at_risk -= leaving[num_tokens]
        return cls(ends, survival)

    def mean(self, bound: int) -> float:
        """Of a length that is cut at `bound`."""
        place = bisect_right(self._ends, bound)
        start = self._ends[place - 1] if place else 0
        return self._sums[place] + (bound - start) * self._survival[place]

    def variance(self, bound: int) -> float:
        place = bisect_right(self._ends, bound)
        start = self._ends[place - 1] if place else 0
        square = self._squares[place] + (bound**2 - start**2) * self._survival[place]
        return max(0.0, square - self.mean(bound) ** 2)


def _spread_of_batches(model: _Lengths, lengths: Sequence[Length]) -> float:
    """The standard deviation of log(tokens of a batch / tokens expected of it), beyond what chance within it makes."""
    by_batch: dict[str, list[Length]] = {}
    for length in lengths:
        by_batch.setdefault(length.batch_id, []).append(length)
    if len(by_batch) < _LEAST_BATCHES:
        return _UNKNOWN_SPREAD
    ratios, by_chance = [], []
    for batch in by_batch.values():
        expected = sum(model.mean(length.max_tokens) for length in batch)
        total = sum(length.num_tokens for length in batch)
        if expected > 0 and total > 0:
            ratios.append(log(total / expected))
            by_chance.append(sum(model.variance(length.max_tokens) for length in batch) / expected**2)
    if len(ratios) < _LEAST_BATCHES:
        return _UNKNOWN_SPREAD
    spread = sqrt(max(0.0, variance(ratios) - fmean(by_chance)))
    return spread * _student_factor(len(ratios))


def _student_factor(count: int) -> float:
    """By how much the 95th percentile of one more draw lies further out where mean and spread are of few draws.

    Student's distribution by the first terms of its expansion around the normal one (Abramowitz and Stegun, 26.7.5).
    """
    freedom = count - 1
    student = _P95 + (_P95**3 + _P95) / (4 * freedom) + (5 * _P95**5 + 16 * _P95**3 + 3 * _P95) / (96 * freedom**2)
    return student / _P95 * sqrt(1 + 1 / count)
