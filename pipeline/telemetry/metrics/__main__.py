"""Renders all metrics as `docs/metrics.md`: `python -m pipeline.telemetry.metrics > docs/metrics.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Final

from pipeline.telemetry.metrics.control_names import CONTROL_METRICS
from pipeline.telemetry.metrics.gateway_names import COMMON_METRICS, GATEWAY_METRICS
from pipeline.telemetry.metrics.group_names import GROUP_METRICS
from pipeline.telemetry.metrics.metric import Metric
from pipeline.telemetry.metrics.vllm_names import VLLM_METRICS

_INTRODUCTION: Final = """\
# Metrics

Every metric of every process, by where it is shown; [observability.md](observability.md#metrics) says where that is and
how it is measured. Histograms have `_bucket`, `_sum` and `_count`. No label is ever the id of a batch, a request or a
key.
"""
_SECTIONS: Final = (
    (
        "Every process",
        "And `process_…`: memory, processor time and open files, as Prometheus' clients have them.",
        COMMON_METRICS,
    ),
    ("Group", "", GROUP_METRICS),
    (
        "Group, by vLLM's names",
        "The same numbers once more, for dashboards made for vLLM. What has no counterpart here (residency of "
        "KV blocks, rejected admissions, LoRA) is left out.",
        VLLM_METRICS,
    ),
    ("Gateway", "", GATEWAY_METRICS),
    (
        "Control",
        "Of the whole service: where several control workers run, each says the same, so take the greatest and not the "
        "sum. `task_…`, `swept`, `leases_lost` and `sweeper_…` are each worker's own.",
        CONTROL_METRICS,
    ),
)


def render() -> str:
    """The page, generated from the definitions, so that it can't be out of date."""
    return _INTRODUCTION + "".join(_section(*section) for section in _SECTIONS)


def _section(title: str, text: str, metrics: Iterable[Metric]) -> str:
    rows = "\n".join(_row(metric) for metric in metrics)
    said = f"\n{text}\n" if text else ""
    return f"\n## {title}\n{said}\n| metric | kind | labels | meaning |\n| --- | --- | --- | --- |\n{rows}\n"


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |"


if __name__ == "__main__":
    sys.stdout.write(render())
