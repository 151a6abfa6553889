"""The boards of deploy/grafana: complete, as their source says, and about metrics that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from observability_queries import Query, alert_queries, board_queries

from deploy.grafana.boards import BOARDS
from deploy.grafana.boards.__main__ import FOLDER, files
from deploy.grafana.boards.panels import Board
from pipeline.telemetry.metrics.names import METRICS, series_names

GRAFANA = FOLDER.parent
_MATCHERS = re.compile(r"(\w+)\{([^}]*)\}")


def panels(board: Board) -> list[dict[str, Any]]:
    return [panel for panel in board.to_json()["panels"] if panel["type"] != "row"]


def test_the_files_are_what_the_source_says() -> None:
    """If not: `python -m deploy.grafana.boards`."""
    assert {path.name: path.read_text() for path in FOLDER.iterdir()} == files()


def test_every_panel_has_a_title_a_unit_and_a_description() -> None:
    for board in BOARDS:
        for panel in panels(board):
            where = f"{board.uid}: {panel['title']}"
            assert panel["title"], where
            assert panel["fieldConfig"]["defaults"]["unit"], where
            assert panel["description"].endswith("."), where
            assert panel["targets"], where


def test_panels_lie_beside_and_below_each_other() -> None:
    for board in BOARDS:
        taken: set[tuple[int, int]] = set()
        ids = [panel["id"] for panel in board.to_json()["panels"]]
        assert len(ids) == len(set(ids))
        for panel in board.to_json()["panels"]:
            at = panel["gridPos"]
            cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
            assert not cells & taken, f"{board.uid}: {panel['title']}"
            assert at["x"] + at["w"] <= 24
            taken |= cells


@pytest.mark.parametrize("query", [*board_queries(), *alert_queries()], ids=lambda query: query.where)
def test_a_query_asks_for_metrics_and_labels_that_there_are(query: Query) -> None:
    assert query.names
    # Flower knows its own.
    assert {name for name in query.names if not name.startswith("flower_")} <= series_names() | {"up"}
    for name, matchers in _MATCHERS.findall(query.expr):
        metric = METRICS.get(name) or METRICS.get(re.sub("_(bucket|sum|count)$", "", name))
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
        assert labels <= ({"process"} if metric is None else set(metric.labels)), name


def test_variables_are_those_that_are_asked_with() -> None:
    for board in BOARDS:
        text = json.dumps([panel["targets"] for panel in panels(board)])
        offered = {variable["name"] for variable in board.to_json()["templating"]["list"]} - {"datasource"}
        asked = set(re.findall(r"\$([a-z]\w*)", text)) - {"datasource"}
        assert asked == offered, board.uid


def test_grafana_finds_the_boards_and_prometheus() -> None:
    provider = yaml.safe_load((GRAFANA / "provisioning/dashboards/ryzanstein.yml").read_text())["providers"][0]
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    compose = yaml.safe_load((Path(__file__).parents[3] / "compose.yaml").read_text())["services"]
    mounts = dict(mount.split(":")[:2] for mount in compose["grafana"]["volumes"])

    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    assert source["url"] == "http://prometheus:9090"
