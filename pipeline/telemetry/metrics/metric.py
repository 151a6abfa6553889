"""What is known of a metric before anything is measured: its name, its kind, its labels, and what it means."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What Prometheus may do with a metric."""

    COUNTER = "counter"  #: Only grows, but for restarts of its process; read it with `rate` or `increase`.
    GAUGE = "gauge"  #: Says how it is now.
    HISTOGRAM = "histogram"  #: `_bucket`, `_sum` and `_count`.


class Source(StrEnum):
    """Which processes have it."""

    EVERY = "every process"
    GROUP = "group"
    GATEWAY = "gateway"
    CONTROL = "control"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. Labels are bounded: no id of a batch, a request or a key is ever one."""

    #: As Prometheus sees it, `_total` of a counter included; of a histogram without its endings.
    name: str
    kind: Kind
    help: str
    source: Source
    labels: tuple[str, ...] = ()
    #: Upper bounds, ascending, of a histogram alone; the last, infinity, goes without saying.
    buckets: tuple[float, ...] = ()

    @property
    def series_names(self) -> tuple[str, ...]:
        """The names that a query may use."""
        if self.kind is Kind.HISTOGRAM:
            return tuple(f"{self.name}_{ending}" for ending in ("bucket", "sum", "count"))
        return (self.name,)
