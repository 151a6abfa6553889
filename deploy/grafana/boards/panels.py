"""What a board is made of, and how Grafana wants it written down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

#: Of Grafana's dashboards, which newer versions read as well.
_SCHEMA: Final = 41
#: Columns of Grafana's grid.
_COLUMNS: Final = 24
_DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
#: Filled lines, so that the sum can be seen.
_STACKED: Final = {"drawStyle": "line", "fillOpacity": 25, "stacking": {"mode": "normal"}, "showPoints": "never"}
_LINES: Final = {"drawStyle": "line", "fillOpacity": 0, "lineWidth": 1, "showPoints": "never"}


class Unit(StrEnum):
    """Grafana's names of the units used here."""

    COUNT = "short"
    SHARE = "percentunit"  #: 0 to 1.
    SECONDS = "s"
    BYTES = "bytes"
    TOKENS = "suffix: tokens"
    TOKENS_PER_SECOND = "suffix: tokens/s"
    PER_SECOND = "suffix: /s"
    #: Which currency it is, the legend says.
    AMOUNT = "none"


class Kind(StrEnum):
    """Grafana's names of the panels used here, and how large they are."""

    LINES = "timeseries"
    STAT = "stat"
    BARS = "bargauge"

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows of the grid."""
        return (4, 4) if self is Kind.STAT else (8, 8)


@dataclass(frozen=True)
class Query:
    """PromQL, and what its series are called: `{{label}}` stands for the label's value."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, kw_only=True)
class Panel:
    title: str
    #: What it shows, and what to do if it looks bad.
    description: str
    unit: Unit
    queries: Sequence[Query]
    kind: Kind = Kind.LINES
    is_stacked: bool = False
    #: From here on it is shown in red; below, if `is_low_bad`.
    bad: float | None = None
    is_low_bad: bool = False

    def to_json(self, panel_id: int, x: int, y: int) -> dict[str, Any]:
        width, height = self.kind.size
        defaults: dict[str, Any] = {"unit": self.unit.value, "thresholds": self._thresholds()}
        if self.unit is Unit.SHARE:
            defaults |= {"min": 0}
        options: dict[str, Any] = {}
        if self.kind is Kind.LINES:
            defaults["custom"] = dict(_STACKED if self.is_stacked else _LINES)
            options = {
                "legend": {"displayMode": "list", "placement": "bottom"},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        else:
            options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "orientation": "auto"}
        return {
            "id": panel_id,
            "type": self.kind.value,
            "title": self.title,
            "description": self.description,
            "datasource": _DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": width, "h": height},
            "fieldConfig": {"defaults": defaults, "overrides": []},
            "options": options,
            "targets": [
                {
                    "refId": chr(ord("A") + index),
                    "datasource": _DATASOURCE,
                    "expr": query.expr,
                    "legendFormat": query.legend or "__auto",
                    "instant": self.kind is not Kind.LINES,
                    "range": self.kind is Kind.LINES,
                }
                for index, query in enumerate(self.queries)
            ],
        }

    def _thresholds(self) -> dict[str, Any]:
        first, then = ("red", "green") if self.is_low_bad else ("green", "red")
        steps: list[dict[str, Any]] = [{"color": "green" if self.bad is None else first, "value": None}]
        if self.bad is not None:
            steps.append({"color": then, "value": self.bad})
        return {"mode": "absolute", "steps": steps}


@dataclass(frozen=True)
class Row:
    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Variable:
    """What a reader chooses at the top of a board: values of a label, all of them unless some are chosen."""

    name: str
    label: str
    #: The metric whose label is offered.
    metric: str

    def to_json(self) -> dict[str, Any]:
        query = f"label_values({self.metric}, {self.name})"
        return {
            "type": "query",
            "name": self.name,
            "label": self.label,
            "datasource": _DATASOURCE,
            "definition": query,
            "query": {"qryType": 1, "query": query, "refId": self.name},
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": ["All"], "value": ["$__all"]},
            "sort": 1,
        }


@dataclass(frozen=True)
class Number:
    """A number that a reader types in, since nothing here knows it."""

    name: str
    label: str
    value: str

    def to_json(self) -> dict[str, Any]:
        current = {"text": self.value, "value": self.value}
        return {
            "type": "textbox",
            "name": self.name,
            "label": self.label,
            "query": self.value,
            "current": current,
            "options": [{**current, "selected": True}],
        }


@dataclass(frozen=True)
class Board:
    #: Stays for ever: links name it.
    uid: str
    title: str
    description: str
    variables: Sequence[Variable | Number]
    rows: Sequence[Row]

    def to_json(self) -> dict[str, Any]:
        """The board as a file that Grafana reads. The same each time it is called."""
        source = {
            "type": "datasource",
            "name": "datasource",
            "label": "Prometheus",
            "query": "prometheus",
            "current": {},
        }
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["ryzanstein"],
            "schemaVersion": _SCHEMA,
            "editable": False,
            "graphTooltip": 1,
            "refresh": "10s",
            "time": {"from": "now-1h", "to": "now"},
            "timezone": "browser",
            "links": [{"type": "dashboards", "title": "Ryzanstein", "tags": ["ryzanstein"], "keepTime": True}],
            "templating": {"list": [source, *(variable.to_json() for variable in self.variables)]},
            "panels": list(self._panels()),
        }

    def _panels(self) -> Iterator[dict[str, Any]]:
        """Rows with their panels from left to right, in as many lines as they need."""
        panel_id, y = 1, 0
        for row in self.rows:
            yield {
                "id": panel_id,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": _COLUMNS, "h": 1},
                "panels": [],
            }
            panel_id, y, x, line_height = panel_id + 1, y + 1, 0, 0
            for panel in row.panels:
                width, height = panel.kind.size
                if x + width > _COLUMNS:
                    x, y, line_height = 0, y + line_height, 0
                yield panel.to_json(panel_id, x, y)
                panel_id, x, line_height = panel_id + 1, x + width, max(line_height, height)
            y += line_height


MODEL: Final = Variable("model", "Model", "ryzanstein_groups")
GROUP: Final = Variable("group", "Group", "ryzanstein_group_up")
TENANT: Final = Variable("tenant", "Tenant", "ryzanstein_tokens_total")
