"""Our engine on a GPU beside transformers' continuous batching: the same requests in turn, in processes of their own.

    python -m benchmarks.gpu [--workloads nano W2 W3] [--rounds 3]

`nano` is the benchmark that nano-vllm publishes: 256 requests, in and out U(100, 1024). Loading, compiling, recording
and a warm-up of the same shapes are not measured. Shows output tokens/s, and the bytes that must be read at least as a
share of what the GPU's memory was measured to read and write. Writes `benchmarks/results/gpu-….json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import cpus, describe_machine
from benchmarks.make_model import find_model
from benchmarks.runs import Job, make_runs, run_job
from benchmarks.steps import num_bytes, num_operations, work_steps
from models.config import ModelConfig

RESULTS = Path(__file__).parent / "results"
_OWN = [sys.executable, "-m", "benchmarks.own_runner"]
_PEER = [sys.executable, "-P", str(Path(__file__).parent / "peer_runners" / "transformers_continuous.py")]
_BANDWIDTH = [sys.executable, "-m", "benchmarks.gpu", "--bandwidth"]
_COPIED_BYTES = 2**30
_COPIES = 20


def main() -> None:
    options = _parse()
    if not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here, and nothing was measured.")
    if options.bandwidth:
        print(json.dumps(measure_bandwidth()))
        return
    console = Console()
    gpu = run_job(_BANDWIDTH, "", {})
    for name in options.workloads:
        result = measure(name, options, gpu)
        console.print(table(result))
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"gpu-{name}.json").write_text(json.dumps(result, indent=2) + "\n")


def measure(name: str, options: argparse.Namespace, gpu: dict[str, Any]) -> dict[str, Any]:
    runs = make_runs(name, num_runs=options.repeats)
    workload = runs[1]
    model = find_model(workload.model)
    config = ModelConfig.from_pretrained(model)
    steps = work_steps(workload, step_tokens=options.step_tokens)
    job = Job(
        model=str(model),
        dtype="bfloat16",
        num_threads=len(cpus()),
        tp=1,
        max_length=workload.max_length,
        shares_prefixes=False,
        runs=runs,
        engine_options={"device": "cuda", "step_tokens": options.step_tokens},
    )
    own: list[float] = []
    peer: list[float] = []
    details: dict[str, Any] = {}
    for _ in range(options.rounds):
        details["own"] = run_job(_OWN, job.encoded(), {})
        details["peer"] = run_job(_PEER, job.encoded(), {})
        own += details["own"]["seconds"]
        peer += details["peer"]["seconds"]
    return {
        "workload": name,
        "model": workload.model,
        "num_prompt_tokens": workload.num_prompt_tokens,
        "num_output_tokens": workload.num_output_tokens,
        "settings": {"rounds": options.rounds, "repeats": options.repeats, "step_tokens": options.step_tokens},
        "machine": describe_machine() | {"gpu": gpu["name"]},
        "own": own,
        "peer": peer,
        "ratio": statistics.median(peer) / statistics.median(own),
        "operations": num_operations(config, steps),
        "bytes_read": num_bytes(config, steps),
        "bandwidth": gpu["bytes_per_second"],
        "details": details,
    }


def measure_bandwidth() -> dict[str, Any]:
    """Bytes read and written per second while a tensor is copied: what memory gives in practice."""
    source = torch.zeros(_COPIED_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    for _ in range(2):  # the first warms up
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(_COPIES):
            target.copy_(source)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    return {"name": torch.cuda.get_device_name(), "bytes_per_second": 2 * _COPIED_BYTES * _COPIES / seconds}


def table(result: dict[str, Any]) -> Table:
    tokens = f"{result['num_prompt_tokens']:,} prompt and {result['num_output_tokens']:,} output tokens"
    shown = Table(title=f"{result['workload']}: {tokens}, {result['model']}, {result['machine']['gpu']}")
    for heading in ("", "seconds", "output tok/s", "TFLOP/s", "GB/s", "share of memory"):
        shown.add_column(heading, justify="left" if not heading else "right")
    for name, side in (("ours", "own"), ("transformers, continuous", "peer")):
        seconds = statistics.median(result[side])
        shown.add_row(
            name,
            f"{seconds:.2f}",
            f"{result['num_output_tokens'] / seconds:,.0f}",
            f"{result['operations'] / seconds / 1e12:,.1f}",
            f"{result['bytes_read'] / seconds / 1e9:,.0f}",
            f"{result['bytes_read'] / seconds / result['bandwidth']:.1%}",
        )
    shown.add_section()
    shown.add_row("ours / peer", f"{result['ratio']:.2f}")
    return shown


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=["nano", "W2", "W3"], default=["nano", "W2", "W3"])
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side")
    parser.add_argument("--repeats", type=int, default=1, help="measured runs in each process")
    parser.add_argument("--step-tokens", type=int, default=8_192, help="token budget of a step of ours")
    parser.add_argument("--bandwidth", action="store_true", help="measure the GPU's memory alone")
    # A measured process is given the path of its job, which this one has none of.
    parser.add_argument("job", nargs="?", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
