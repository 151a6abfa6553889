"""The same requests through the whole pipeline and through the bare engine, in turn, A B A B.

    python -m benchmarks.pipeline_engine [--workload W1] [--times 10] [--rounds 3]

A: our engine alone, in a process of its own (`benchmarks/own_runner.py`). B: a stack of its own, and a batch sent with
the stock `openai` client; from its submission until it is completed, by the clock of this machine and of its database.
Loading and a warm-up are not measured.
Medians are compared. Also shows what each process of the stack used of the processors that the ranks compute with.
Writes `benchmarks/results/pipeline-engine.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import openai
import psycopg
from rich.console import Console
from rich.table import Table

from benchmarks.machine import cpus, describe_machine
from benchmarks.make_model import find_model
from benchmarks.runs import Job, make_runs, run_job
from benchmarks.stacks import cpu_times, request_line, run_batch, running_stack
from benchmarks.workloads import NAMES, Workload

RESULT = Path(__file__).parent / "results" / "pipeline-engine.json"
TARGET_RATIO = 0.95
DTYPE = "bfloat16"
ENDPOINT: Final = "/v1/completions"
#: How often the batch is asked for, in seconds: as a client does who is in no hurry. How long it is completed before it
#: is seen is not measured.
POLL_SECONDS = 0.5
_ENGINE = [sys.executable, "-m", "benchmarks.own_runner"]


@dataclass
class Results:
    workload: str
    num_requests: int
    num_prompt_tokens: int
    num_output_tokens: int
    machine: dict[str, Any] = field(default_factory=describe_machine)
    #: Seconds, one per round.
    engine: list[float] = field(default_factory=list)
    pipeline: list[float] = field(default_factory=list)
    upload: list[float] = field(default_factory=list)
    #: Processor seconds of the batch by process, of the last round; those of the ranks by themselves.
    cpu_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Throughput of the pipeline over that of the engine."""
        return statistics.median(self.engine) / statistics.median(self.pipeline)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=NAMES, default="W1")
    parser.add_argument("--times", type=int, default=10, help="the workload so many times as large")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    console = Console()
    results = measure(options.workload, options.times, options.rounds, console)
    console.print(table(results))
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({**asdict(results), "ratio": results.ratio}, indent=2) + "\n")
    console.print(f"Written to benchmarks/results/{RESULT.name}")


def measure(workload: str, times: int, num_rounds: int, console: Console) -> Results:
    runs = make_runs(workload, num_runs=1, repeat=times)
    model = find_model(runs[0].model)
    # Nothing is set but what the stack sets: both sides choose threads and cache by themselves.
    job = Job(
        model=str(model),
        dtype=DTYPE,
        num_threads=len(cpus()),
        tp=1,
        max_length=max(run.max_length for run in runs),
        shares_prefixes=runs[1].fewest_prompt_tokens < runs[1].num_prompt_tokens,
        runs=runs,
    )
    results = Results(workload, len(runs[1].requests), runs[1].num_prompt_tokens, runs[1].num_output_tokens)
    for number in range(1, num_rounds + 1):
        results.engine += run_job(_ENGINE, job.encoded(), {})["seconds"]
        with running_stack(model, "--dtype", DTYPE) as stack:
            measure_pipeline(stack, runs[0], runs[1], results)
        engine, pipeline = results.engine[-1], results.pipeline[-1]
        console.print(f"round {number}: engine {engine:.2f} s, pipeline {pipeline:.2f} s")
    return results


def measure_pipeline(stack: dict[str, Any], warm_up: Workload, measured: Workload, results: Results) -> None:
    client = openai.OpenAI(base_url=stack["base_url"], api_key=stack["api_key"])
    run_batch(client, lines(warm_up), ENDPOINT, POLL_SECONDS)
    before = processor_seconds(stack["pids"])
    seconds, upload_seconds = run_batch(client, lines(measured), ENDPOINT, POLL_SECONDS)
    seconds -= time.time() - last_completion(stack["database_url"])
    after = processor_seconds(stack["pids"])
    results.pipeline.append(seconds)
    results.upload.append(upload_seconds)
    results.cpu_seconds = {name: round(used - before[name], 2) for name, used in after.items() if name in before}


def last_completion(database_url: str) -> float:
    """When the last batch was completed, in seconds since 1970."""
    with psycopg.connect(database_url) as conn:
        row = conn.execute("SELECT extract(epoch FROM max(completed_at))::float FROM batches").fetchone()
    assert row is not None
    return float(row[0])


def lines(workload: Workload) -> list[bytes]:
    return [
        request_line(
            number,
            ENDPOINT,
            {
                "model": workload.model,
                "prompt": list(request.prompt_token_ids),
                "max_tokens": request.max_tokens,
                "temperature": 0,
                "ignore_eos": True,
            },
        )
        for number, request in enumerate(workload.requests)
    ]


def processor_seconds(pids: dict[str, int]) -> dict[str, float]:
    """As `cpu_times`, but a group without its ranks, which are there by themselves."""
    used = cpu_times(pids)
    for name in [name for name in used if ".rank-" in name]:
        used[name.partition(".")[0]] -= used[name]
    return used


def table(results: Results) -> Table:
    num_tokens = results.num_prompt_tokens + results.num_output_tokens
    title = f"{results.workload}: {results.num_requests} requests, {num_tokens:,} tokens"
    shown = Table(title=title, title_justify="left")
    for heading in ("", "seconds", "total tok/s", "target"):
        shown.add_column(heading, justify="left" if not heading else "right")
    for name, values in (("engine alone", results.engine), ("pipeline, submission to completed", results.pipeline)):
        seconds = statistics.median(values)
        shown.add_row(name, f"{seconds:.2f}", f"{num_tokens / seconds:,.0f}", "")
    shown.add_row("pipeline / engine", "", f"{results.ratio:.3f}", f">= {TARGET_RATIO:g}")
    shown.add_section()
    shown.add_row("upload before it", f"{statistics.median(results.upload):.2f}", "", "")
    for name, cpu_seconds in results.cpu_seconds.items():
        shown.add_row(f"processor time, {name}", f"{cpu_seconds:.2f}", "", "")
    return shown


if __name__ == "__main__":
    main()
