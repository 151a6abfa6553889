"""Requests per second through the whole pipeline, with an engine that echoes, beside plain Celery in the same run.

    python -m benchmarks.pipeline [--requests 20000] [--rounds 3]

Starts a stack of its own: PostgreSQL, Redis, gateway, control worker and one group. Rounds of both sides alternate,
and medians are compared. Writes `benchmarks/results/pipeline.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import openai
from rich.console import Console
from rich.table import Table

from benchmarks.model import write_model
from benchmarks.plain_celery import POOLS, run_tasks, running_worker
from benchmarks.stacks import cpu_times, peak_mb, request_line, run_batch, running_stack

RESULT = Path(__file__).parent / "results" / "pipeline.json"
MODEL = "echo"
ENDPOINT: Final = "/v1/chat/completions"
#: How often a batch is asked for, in seconds: rarely enough not to be measured itself.
POLL_SECONDS = 0.2
LONE_POLL_SECONDS = 0.01

TARGET_RATIO = 3.0
TARGET_CONTROL_MB = 400.0
TARGET_LONE_SECONDS = 1.0


@dataclass
class Results:
    num_requests: int
    cores: int = field(default_factory=lambda: os.cpu_count() or 1)
    machine: str = field(default_factory=platform.machine)
    python: str = field(default_factory=platform.python_version)
    peer_pool: str = ""
    #: Requests per second, one value per round.
    pipeline: list[float] = field(default_factory=list)
    pipeline_with_upload: list[float] = field(default_factory=list)
    plain_celery: list[float] = field(default_factory=list)
    #: Processor seconds of one round by process, of the last round.
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    control_peak_mb: float = 0.0
    lone_request_seconds: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        return statistics.median(self.pipeline) / statistics.median(self.plain_celery)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lone-batches", type=int, default=20)
    options = parser.parse_args()
    console = Console()
    with echo_stack() as stack:
        results = measure(stack, options.requests, options.rounds, options.lone_batches, console)
    console.print(table(results))
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({**asdict(results), "ratio": results.ratio}, indent=2) + "\n")
    console.print(f"Written to {RESULT}")


@contextmanager
def echo_stack() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / MODEL)
        with running_stack(model, "--engine", "echo", "--model-name", MODEL) as stack:
            yield stack


def measure(stack: dict[str, Any], num_requests: int, num_rounds: int, num_lone: int, console: Console) -> Results:
    results = Results(num_requests)
    client = openai.OpenAI(base_url=stack["base_url"], api_key=stack["api_key"])
    run_echo(client, 100)  # opens connections, loads the tokenizer
    results.lone_request_seconds = [run_echo(client, 1)[0] for _ in range(num_lone)]
    results.peer_pool = best_pool(stack["redis_url"], max(1, num_requests // 10))
    for number in range(1, num_rounds + 1):
        before = cpu_times(stack["pids"])
        seconds, upload_seconds = run_echo(client, num_requests)
        results.cpu_seconds = {
            name: round(used - before[name], 2) for name, used in cpu_times(stack["pids"]).items() if name in before
        }
        results.pipeline.append(num_requests / seconds)
        results.pipeline_with_upload.append(num_requests / (seconds + upload_seconds))
        with running_worker(stack["redis_url"], results.peer_pool):
            results.plain_celery.append(num_requests / run_tasks(stack["redis_url"], num_requests))
        console.print(
            f"round {number}: pipeline {results.pipeline[-1]:,.0f}/s, plain Celery {results.plain_celery[-1]:,.0f}/s"
        )
    results.control_peak_mb = peak_mb(stack["pids"]["control"])
    return results


def run_echo(client: openai.OpenAI, num_requests: int) -> tuple[float, float]:
    """As `run_batch` does."""
    poll_seconds = POLL_SECONDS if num_requests > 1 else LONE_POLL_SECONDS
    return run_batch(client, [line(number) for number in range(num_requests)], ENDPOINT, poll_seconds)


def line(number: int) -> bytes:
    messages = [{"role": "user", "content": f"How is {number} answered?"}]
    return request_line(number, ENDPOINT, {"model": MODEL, "max_tokens": 16, "messages": messages})


def best_pool(redis_url: str, num_tasks: int) -> str:
    speeds: dict[str, float] = {}
    for pool in POOLS:
        with running_worker(redis_url, pool):
            speeds[pool] = num_tasks / run_tasks(redis_url, num_tasks)
    return max(speeds, key=lambda pool: speeds[pool])


def table(results: Results) -> Table:
    shown = Table(title=f"{results.num_requests:,} requests, {results.cores} cores", title_justify="left")
    for heading in ("", "median", "best", "target"):
        shown.add_column(heading, justify="left" if not heading else "right")
    for name, values in (
        ("pipeline, from submission to completed", results.pipeline),
        ("pipeline, with the upload", results.pipeline_with_upload),
        (f"plain Celery, empty tasks ({results.peer_pool})", results.plain_celery),
    ):
        shown.add_row(name, f"{statistics.median(values):,.0f}/s", f"{max(values):,.0f}/s", "")
    shown.add_row("pipeline / plain Celery", f"{results.ratio:.2f}", "", f">= {TARGET_RATIO:g}")
    shown.add_row("control worker, peak memory", f"{results.control_peak_mb:.0f} MB", "", f"< {TARGET_CONTROL_MB:g} MB")
    lone = statistics.median(results.lone_request_seconds)
    shown.add_row("batch of one request", f"{lone:.2f} s", "", f"< {TARGET_LONE_SECONDS:g} s")
    for name, seconds in results.cpu_seconds.items():
        shown.add_row(f"processor time, {name}", f"{seconds / results.num_requests * 1e6:.0f} us/request", "", "")
    return shown


if __name__ == "__main__":
    main()
