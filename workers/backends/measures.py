"""What an engine measures of its own work: counts and histograms that can be added up, and sent as differences."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Final

import msgspec

from pipeline.telemetry.metrics import group_names as names
from pipeline.telemetry.metrics.metric import Metric


class Distribution(msgspec.Struct, array_like=True):
    """A histogram of values; who reads it knows its bounds."""

    #: Values up to each bound and above the one before; the last has no bound.
    counts: list[int]
    total: float = 0.0

    @classmethod
    def of(cls, metric: Metric) -> Distribution:
        return cls([0] * (len(metric.buckets) + 1))

    @property
    def num_values(self) -> int:
        return sum(self.counts)

    def add(self, other: Distribution) -> None:
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.total += other.total


#: The field of `Measures` that a counter or a histogram is read from.
COUNTERS: Final[Mapping[str, Metric]] = {
    "num_preemptions": names.PREEMPTIONS,
    "num_prefix_queries": names.PREFIX_QUERIES,
    "num_prefix_hits": names.PREFIX_HITS,
    "num_prompt_tokens": names.PROMPT_TOKENS,
    "num_generation_tokens": names.GENERATION_TOKENS,
}
DISTRIBUTIONS: Final[Mapping[str, Metric]] = {
    "step_seconds": names.STEP_TIME,
    "step_tokens": names.STEP_TOKENS,
    "inter_token_seconds": names.INTER_TOKEN,
    "queue_seconds": names.QUEUE_TIME,
    "first_token_seconds": names.FIRST_TOKEN,
    "prefill_seconds": names.PREFILL_TIME,
    "decode_seconds": names.DECODE_TIME,
    "inference_seconds": names.INFERENCE_TIME,
    "duration_seconds": names.DURATION,
    "token_seconds": names.TIME_PER_TOKEN,
    "prompt_tokens": names.REQUEST_PROMPT,
    "generation_tokens": names.REQUEST_GENERATION,
}


class Measures(msgspec.Struct):
    """Since the engine started, or since the last time that they were taken."""

    #: By field, each of `COUNTERS`.
    counts: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    #: By field, those of `DISTRIBUTIONS` that have values.
    distributions: dict[str, Distribution] = msgspec.field(default_factory=dict)
    #: Requests that left the engine, by why: stop, length, abort, error, crash.
    ends: dict[str, int] = msgspec.field(default_factory=dict)

    def count(self, field: str, num: int) -> None:
        self.counts[field] += num

    def observe(self, field: str, value: float, times: int = 1) -> None:
        """`times` values at once."""
        found = self.distributions.get(field)
        if found is None:
            found = self.distributions[field] = Distribution.of(DISTRIBUTIONS[field])
        found.counts[bisect_left(DISTRIBUTIONS[field].buckets, value)] += times
        found.total += value * times

    def end(self, reason: str) -> None:
        self.ends[reason] = self.ends.get(reason, 0) + 1

    def distribution(self, field: str) -> Distribution:
        return self.distributions.get(field) or Distribution.of(DISTRIBUTIONS[field])

    def add(self, later: Measures) -> None:
        for field, num in later.counts.items():
            self.counts[field] += num
        for field, distribution in later.distributions.items():
            if (mine := self.distributions.get(field)) is None:
                self.distributions[field] = Distribution(list(distribution.counts), distribution.total)
            else:
                mine.add(distribution)
        for reason, num in later.ends.items():
            self.ends[reason] = self.ends.get(reason, 0) + num

    def copy(self) -> Measures:
        copied = Measures()
        copied.add(self)
        return copied
