"""What a group itself counts of its work: attempts, outcomes, recordings and waste. Thread-safe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry

from pipeline.jobs.recording import RequestOutcome
from pipeline.jobs.waste import WastePart
from pipeline.tables.slices import AttemptEnd
from pipeline.telemetry.metrics import group_names as names
from pipeline.telemetry.metrics.registry import make_counter, make_histogram


class GroupCounters:
    def __init__(self, group: str, model: str, registry: CollectorRegistry | None = None) -> None:
        """Without a registry nobody reads them."""
        registry = registry or CollectorRegistry()
        self._labels = (group, model)
        self._attempts = make_counter(names.ATTEMPTS, registry)
        self._lease_losses = make_counter(names.LEASE_LOSSES, registry).labels(*self._labels)
        self._outcomes = make_counter(names.OUTCOMES, registry)
        self._recording = make_histogram(names.RECORDING_TIME, registry).labels(*self._labels)
        self._waste = make_counter(names.WASTE, registry)
        self._waste_time = make_counter(names.WASTE_TIME, registry)
        for end in AttemptEnd:  # so that the first of each is seen as a rise
            self._attempts.labels(*self._labels, end.value)

    def attempt_ended(self, end: AttemptEnd) -> None:
        self._attempts.labels(*self._labels, end.value).inc()
        if end is AttemptEnd.LOST:
            self._lease_losses.inc()

    def recorded(self, outcomes: Sequence[RequestOutcome], seconds: float) -> None:
        """One transaction."""
        self._recording.observe(seconds)
        for kind, num in Counter(outcome.kind for outcome in outcomes).items():
            self._outcomes.labels(*self._labels, kind.value).inc(num)
        for outcome in outcomes:
            if outcome.waste:
                self.wasted(outcome.waste)

    def wasted(self, parts: Iterable[WastePart]) -> None:
        """As SQL was told."""
        for part in parts:
            self._waste.labels(*self._labels, part.cause.value).inc(part.num_tokens)
            if part.engine_ms is not None:
                self._waste_time.labels(*self._labels, part.cause.value).inc(part.engine_ms / 1000)
