"""The queries of all boards and rules, as Prometheus takes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from deploy.grafana.boards import BOARDS
from pipeline.telemetry.metrics.metric import Kind
from pipeline.telemetry.metrics.vllm_names import VLLM_METRICS

RULES = Path(__file__).parents[1] / "deploy" / "prometheus" / "rules"
#: Names of ours, of vLLM's and of Flower's; and what Prometheus itself says of a target.
_NAME = re.compile(r"\b(?:ryzanstein_\w+|vllm:\w+|flower_\w+)|\bup\b(?={)")
#: What Grafana puts in place of variables, everything being chosen.
_VALUES = {"$__rate_interval": "1m", "$__range": "5m", "$group_hour_cost": "2"}


@dataclass(frozen=True)
class Query:
    #: The board and its panel, or the alert.
    where: str
    expr: str
    is_alert: bool = False

    @property
    def names(self) -> set[str]:
        """Of its metrics."""
        return set(_NAME.findall(self.expr))

    @property
    def without_variables(self) -> str:
        expr = self.expr
        for name, value in _VALUES.items():
            expr = expr.replace(name, value)
        return re.sub(r"\$[a-z_]\w*", ".*", expr)


@cache
def all_alerts() -> dict[str, dict[str, Any]]:
    """The rules by name."""
    groups = [group for file in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(file.read_text())["groups"]]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def board_queries() -> Iterator[Query]:
    for board in BOARDS:
        for panel in board.to_json()["panels"]:
            for target in panel.get("targets", ()):
                yield Query(f"{board.title}: {panel['title']}", target["expr"])


def alert_queries() -> Iterator[Query]:
    for name, rule in all_alerts().items():
        yield Query(name, rule["expr"], is_alert=True)


def vllm_queries(model: str) -> Iterator[Query]:
    """What dashboards made for vLLM ask of each of its metrics."""
    chosen = f'{{model_name="{model}", engine="0"}}'
    for metric in VLLM_METRICS:
        expr = {
            Kind.GAUGE: f"{metric.name}{chosen}",
            Kind.COUNTER: f"sum by (model_name) (rate({metric.name}{chosen}[1m]))",
            Kind.HISTOGRAM: f"histogram_quantile(0.99, sum by (le) (rate({metric.name}_bucket{chosen}[1m])))",
        }[metric.kind]
        yield Query(metric.name, expr)
