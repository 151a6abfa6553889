"""All metrics by name. Names stay as they are: dashboards of others rest on them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from pipeline.telemetry.metrics.control_names import CONTROL_METRICS
from pipeline.telemetry.metrics.gateway_names import COMMON_METRICS, GATEWAY_METRICS
from pipeline.telemetry.metrics.group_names import GROUP_METRICS
from pipeline.telemetry.metrics.metric import Metric
from pipeline.telemetry.metrics.vllm_names import VLLM_METRICS

#: In the order in which docs/observability.md shows them.
METRICS: Final[Mapping[str, Metric]] = MappingProxyType(
    {
        metric.name: metric
        for metric in (*COMMON_METRICS, *GROUP_METRICS, *VLLM_METRICS, *GATEWAY_METRICS, *CONTROL_METRICS)
    }
)


def series_names() -> frozenset[str]:
    """Every name that a query on these metrics may use."""
    return frozenset(name for metric in METRICS.values() for name in metric.series_names)
