"""A group's metrics, read when somebody asks: what its engine measured, how it is, and vLLM's names for the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from pipeline.processes import resident_bytes
from pipeline.telemetry.metrics import group_names as names
from pipeline.telemetry.metrics.metric import Kind, Metric
from pipeline.telemetry.metrics.registry import family, histogram_family
from pipeline.telemetry.metrics.vllm_names import ALIASES, CACHE_CONFIG
from workers.backends.measures import COUNTERS, DISTRIBUTIONS, Measures
from workers.backends.protocol import Engine, EngineState
from workers.fleet import GroupIdentity

#: What every engine can end a request with, so that the first of each is seen as a rise.
_REASONS: Final = ("stop", "length", "abort", "error", "crash")
#: vLLM numbers the engines of a server.
_ENGINE: Final = "0"


class GroupMetrics(Collector):
    def __init__(
        self,
        engine: Engine,
        identity: GroupIdentity,
        *,
        num_slices: Callable[[], int],
        num_unrecorded: Callable[[], int],
        seconds_since_renewal: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._identity = identity
        self._num_slices = num_slices
        self._num_unrecorded = num_unrecorded
        self._seconds_since_renewal = seconds_since_renewal
        self._labels = (identity.id, identity.model)

    def collect(self) -> Iterator[Family]:
        measures = self._engine.measures()
        found = {metric.name: made for metric, made in (*self._gauges(), *self._measured(measures))}
        yield from found.values()
        for ours, theirs in ALIASES:
            yield self._renamed(found[ours.name], ours, theirs)
        load = self._engine.load()
        if load.kv_block_size:
            num_blocks = load.num_kv_tokens // load.kv_block_size
            labels = (self._identity.model, _ENGINE, str(load.kv_block_size), str(num_blocks), "True")
            yield family(CACHE_CONFIG, [(labels, 1)])

    def _gauges(self) -> Iterator[tuple[Metric, Family]]:
        load, health, info = self._engine.load(), self._engine.health(), self._identity.info
        ranks = {rank: resident_bytes(pid) for rank, pid in enumerate(health.rank_pids)}
        num_ranks = int(info.get("tp", len(ranks))) if info.get("engine") != "echo" else 0
        values = {
            names.GROUP_UP: health.state is EngineState.READY,
            names.GROUP_RANKS: num_ranks,
            names.ENGINE_RESTARTS: health.num_restarts,
            names.ENGINE_RUNNING: load.num_running,
            names.ENGINE_WAITING: load.num_waiting,
            names.KV_TOKENS: load.num_kv_tokens,
            names.KV_TOKENS_USED: load.num_kv_tokens_used,
            names.KV_USAGE: load.num_kv_tokens_used / load.num_kv_tokens if load.num_kv_tokens else 0.0,
            names.SLICES_HELD: self._num_slices(),
            names.UNRECORDED: self._num_unrecorded(),
            names.HEARTBEAT_AGE: self._seconds_since_renewal(),
        }
        for metric, value in values.items():
            yield metric, family(metric, [(self._labels, value)])
        described = [str(info.get(label, "")) for label in names.GROUP_INFO.labels[len(self._labels) :]]
        yield names.GROUP_INFO, family(names.GROUP_INFO, [((*self._labels, *described), 1)])
        # Of a rank that is to be there it is said that it is not; its memory went with it.
        is_up = [((*self._labels, str(rank)), float(ranks.get(rank) is not None)) for rank in range(num_ranks)]
        yield names.RANK_UP, family(names.RANK_UP, is_up)
        memory = [
            ((*self._labels, str(rank), "resident"), num_bytes)
            for rank, num_bytes in ranks.items()
            if num_bytes is not None
        ]
        yield names.RANK_MEMORY, family(names.RANK_MEMORY, memory)

    def _measured(self, measures: Measures) -> Iterator[tuple[Metric, Family]]:
        for field, metric in COUNTERS.items():
            yield metric, family(metric, [(self._labels, measures.counts[field])])
        for field, metric in DISTRIBUTIONS.items():
            values = measures.distribution(field)
            yield metric, histogram_family(metric, self._labels, values.counts, values.total)
        steps = measures.distribution("step_seconds")
        for metric, value in ((names.ENGINE_STEPS, steps.num_values), (names.ENGINE_BUSY, steps.total)):
            yield metric, family(metric, [(self._labels, value)])
        ends = [((*self._labels, reason), measures.ends.get(reason, 0)) for reason in _REASONS]
        yield names.ENGINE_REQUESTS, family(names.ENGINE_REQUESTS, ends)

    def _renamed(self, made: Family, ours: Metric, theirs: Metric) -> Family:
        renamed = Family(
            theirs.name.removesuffix("_total") if theirs.kind is Kind.COUNTER else theirs.name, "", "gauge"
        )
        renamed.documentation, renamed.type = theirs.help, theirs.kind.value
        own = {"model_name": self._identity.model, "engine": _ENGINE}
        for sample in made.samples:
            labels = {_RENAMED.get(label, label): value for label, value in sample.labels.items() if label not in _OURS}
            name = theirs.name + sample.name.removeprefix(ours.name)
            renamed.add_sample(name, {**own, **labels}, sample.value)
        return renamed


_OURS: Final = frozenset(names.GROUP_LABELS)
_RENAMED: Final = {"finish_reason": "finished_reason"}
