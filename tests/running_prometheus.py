"""A real Prometheus that watches a running stack, started as a person would, and what it has seen."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from stacks import RunningStack, wait_for

from pipeline.processes import free_port

ROOT = Path(__file__).parents[1]


class QueryError(AssertionError):
    """Prometheus refused a query."""


@dataclass(frozen=True)
class RunningPrometheus:
    address: str
    process: subprocess.Popen[bytes]
    log_path: Path

    def get(self, path: str, **parameters: str | float) -> Any:
        """What its API answers. Raises QueryError where it is an error."""
        # Long queries do not fit into an address.
        body = urllib.parse.urlencode(parameters).encode() if parameters else None
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"{self.address}/api/v1/{path}", data=body, timeout=20) as answer:
                return json.loads(answer.read())["data"]
        except urllib.error.HTTPError as error:
            raise QueryError(f"{parameters}: {error.read().decode()}") from None

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series of an instant query."""
        found: list[dict[str, Any]] = self.get("query", query=expr)["result"]
        return found

    def moments(self, expr: str, since: float) -> list[float]:
        """When `expr` had a value from `since` on, a quarter of a second apart, in seconds since 1970."""
        series = self.get("query_range", query=expr, start=since, end=since + 120, step=0.25)["result"]
        return sorted({float(moment) for one in series for moment, _ in one["values"]})

    def samples(self, selector: str, since: float) -> list[tuple[float, float]]:
        """When a series was really written from `since` on, with its values, all series that are selected together."""
        found = self.query(f"{selector}[3m]")
        pairs = [(float(moment), float(value)) for one in found for moment, value in one["values"]]
        return sorted(pair for pair in pairs if pair[0] >= since)

    def names(self) -> set[str]:
        """Of all metrics that it has seen."""
        return set(self.get("label/__name__/values"))

    def wait_until_it_sees(self, *processes: str) -> None:
        """Until every one of these answers it, and no other is asked."""

        def has_seen_them() -> bool:
            assert self.process.poll() is None, self.log_path.read_text()
            try:
                return self.targets() == dict.fromkeys(processes, "up")
            except (OSError, QueryError):  # it starts
                return False

        wait_for(has_seen_them, "Prometheus to see all processes")

    def targets(self) -> dict[str, str]:
        """The health of each process by its label `process`."""
        return {one["labels"]["process"]: one["health"] for one in self.get("targets")["activeTargets"]}


def need_prometheus() -> None:
    """Skip where it is not installed."""
    if shutil.which("prometheus") is None:
        pytest.skip("needs Prometheus: apt-get install prometheus")


@contextmanager
def watching(stack: RunningStack) -> Iterator[RunningPrometheus]:
    """Prometheus with the configuration and the rules of deploy/, which has yet to find the stack's processes."""
    port = free_port()
    argv = [sys.executable, "-m", "deploy.prometheus.local", "--data-dir", str(stack.data_dir), "--port", str(port)]
    log_path = stack.data_dir.with_name("prometheus.log")
    with log_path.open("wb") as log:
        process = subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log)
    try:
        yield RunningPrometheus(f"http://127.0.0.1:{port}", process, log_path)
    finally:
        process.terminate()
        process.wait(timeout=30)
