"""The most that this machine gives to a model's matrices, and its memory's bandwidth.

    python -m benchmarks.ceiling [--model qwen3-0.6b] [--quantize int8] [--threads 2]

Every layer's matrices are gone through in their order, as a step does, so that each finds the caches as it would there.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.gemm_methods import Method, Multiply, methods
from benchmarks.gemm_times import GRID, GemmTimes
from benchmarks.machine import cpus
from benchmarks.make_model import SHAPES, find_model
from benchmarks.steps import Matrix, matrices
from models.config import ModelConfig

#: Each number of rows is measured in so many passes at least, and for so long, in seconds; medians count.
_MIN_PASSES = 5
_MIN_SECONDS = 0.4
#: After so many seconds, and one measured pass, no further one begins.
_MAX_SECONDS = 30.0
#: A method that takes so many times as long as another for a matrix by itself, at the best of three, is not measured
#: with that number of rows: where there are no instructions for bfloat16, some would take minutes to be found slowest.
_GIVEN_UP_AT = 4.0
#: A cache that holds what is read would be measured instead of the memory.
_STREAM_BYTES = 2**30


def measure(config: ModelConfig, rows: Mapping[str, Sequence[int]], quantize: str | None = None) -> GemmTimes:
    """`rows` by matrix name; a matrix without any is left out."""
    torch.manual_seed(0)
    shapes = [matrix for matrix in matrices(config) if rows.get(matrix.name)]
    times = GemmTimes({})
    for method in methods(quantize):
        times = GemmTimes({**times.by_method, method.name: _measure_method(method, shapes, rows, times)})
    return times


def measure_bandwidth() -> dict[str, float]:
    """Bytes per second: reading, and a STREAM triad (two read, one written)."""
    first, second = (torch.ones(_STREAM_BYTES // 8, dtype=torch.float32) for _ in range(2))
    written = torch.empty_like(first)
    size = first.nbytes
    return {
        "read": size / _best_seconds(lambda: first.sum()),
        "triad": 3 * size / _best_seconds(lambda: torch.add(first, second, alpha=2.0, out=written)),
    }


def _measure_method(
    method: Method, shapes: Sequence[Matrix], rows: Mapping[str, Sequence[int]], others: GemmTimes
) -> dict[str, dict[int, float]]:
    """Seconds by matrix and rows; infinite where the method was given up."""
    times: dict[str, dict[int, float]] = {matrix.name: {} for matrix in shapes}
    weights = [
        (matrix, torch.randn(matrix.outputs, matrix.inputs, dtype=torch.bfloat16) * 0.02)
        for matrix in _in_order(shapes)
    ]
    prepared: list[tuple[Matrix, Multiply]] = []
    for num_rows in sorted({each for matrix in shapes for each in rows[matrix.name]}):
        if method.depends_on_rows or not prepared:
            prepared.clear()
            prepared += [(matrix, method.prepare(weight, num_rows)) for matrix, weight in weights]
        wanted = [(matrix, multiply) for matrix, multiply in prepared if num_rows in rows[matrix.name]]
        for matrix, multiply in dict(wanted).items():
            if _is_hopeless(matrix, multiply, num_rows, method, others):
                times[matrix.name][num_rows] = math.inf
        wanted = [(matrix, multiply) for matrix, multiply in wanted if num_rows not in times[matrix.name]]
        if wanted:
            for name, seconds in _measure_rows(wanted, num_rows, method).items():
                times[name][num_rows] = seconds
    return times


def _in_order(shapes: Sequence[Matrix]) -> list[Matrix]:
    """As a step comes to them: layer by layer."""
    num_layers = max(matrix.count for matrix in shapes)
    return [matrix for layer in range(num_layers) for matrix in shapes if layer < matrix.count]


@torch.inference_mode()
def _is_hopeless(matrix: Matrix, multiply: Multiply, num_rows: int, method: Method, others: GemmTimes) -> bool:
    if not others.by_method:
        return False
    inputs = _inputs(matrix, num_rows, method)
    multiply(inputs)  # the first one warms up
    return _best_seconds(lambda: multiply(inputs), num_rounds=3) > _GIVEN_UP_AT * others.seconds(matrix.name, num_rows)


def _inputs(matrix: Matrix, num_rows: int, method: Method) -> Tensor:
    return method.convert(torch.randn(num_rows, matrix.inputs).to(torch.bfloat16))


@torch.inference_mode()
def _measure_rows(prepared: Sequence[tuple[Matrix, Multiply]], num_rows: int, method: Method) -> dict[str, float]:
    """Seconds of one multiplication of each matrix: the median over passes of the mean over its weights."""
    inputs = {matrix.name: _inputs(matrix, num_rows, method) for matrix, _ in prepared}
    counts = {name: sum(matrix.name == name for matrix, _ in prepared) for name in inputs}
    passes: dict[str, list[float]] = {name: [] for name in inputs}
    began = time.perf_counter()
    num_passes = 0
    while num_passes <= 1 or (
        (elapsed := time.perf_counter() - began) < _MAX_SECONDS
        and (num_passes <= _MIN_PASSES or elapsed < _MIN_SECONDS)
    ):
        seconds = dict.fromkeys(inputs, 0.0)
        for matrix, multiply in prepared:
            before = time.perf_counter()
            multiply(inputs[matrix.name])
            seconds[matrix.name] += time.perf_counter() - before
        num_passes += 1
        if num_passes > 1:  # the first one warms up
            for name in inputs:
                passes[name].append(seconds[name] / counts[name])
    return {name: statistics.median(values) for name, values in passes.items()}


def _best_seconds(action: Any, num_rounds: int = 5) -> float:
    seconds = []
    for _ in range(num_rounds):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def table(config: ModelConfig, times: GemmTimes) -> Table:
    shapes = matrices(config)
    shown = Table(title="GFLOP/s by rows", title_justify="left")
    for heading in ("matrix", "method", *map(str, GRID)):
        shown.add_column(heading, justify="left" if heading in ("matrix", "method") else "right")
    for matrix in shapes:
        for method, measured in times.by_method.items():
            rates = [
                f"{2e-9 * rows * matrix.inputs * matrix.outputs / measured[matrix.name][rows]:,.0f}"
                if measured[matrix.name].get(rows, math.inf) < math.inf
                else ""
                for rows in GRID
            ]
            shown.add_row(f"{matrix.name} {matrix.inputs}x{matrix.outputs}", method, *rates)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SHAPES), default="qwen3-0.6b")
    parser.add_argument("--quantize", choices=["int8"])
    parser.add_argument("--threads", type=int, default=len(cpus()))
    parser.add_argument("--job", type=Path, help="measure what this file says, and print JSON")
    options = parser.parse_args()
    if options.job is not None:
        run_job(json.loads(options.job.read_text()))
        return
    torch.set_num_threads(options.threads)
    config = ModelConfig.from_pretrained(find_model(options.model))
    # The head's rows are sequences, of which no step has thousands.
    rows = {matrix.name: [each for each in GRID if not matrix.is_head or each <= 256] for matrix in matrices(config)}
    console = Console(width=200)
    console.print(table(config, measure(config, rows, options.quantize)))
    bandwidth = measure_bandwidth()
    console.print(", ".join(f"{name} {value / 1e9:.1f} GB/s" for name, value in bandwidth.items()))


def run_job(job: Mapping[str, Any]) -> None:
    torch.set_num_threads(job["num_threads"])
    times = measure(ModelConfig.from_pretrained(Path(job["model"])), job["rows"], job["quantize"])
    print(json.dumps({"times": times.by_method, "bandwidth": measure_bandwidth()}))


if __name__ == "__main__":
    main()
