"""How long an engine takes to be ready, and to be ready again after one of its ranks was killed.

    python -m benchmarks.start [--model llama-110m] [--tp 1] [--rounds 5]

Ready means that a real token was generated. The import of torch, measured in the same rounds, is nothing that an
engine can shorten: it is shown, and taken off the start. A rank that is started again has it already. Writes
`benchmarks/results/start-….json`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine
from benchmarks.make_model import SHAPES, find_model
from workers.backends.native import EngineOptions, NativeEngine
from workers.backends.protocol import EngineState

RESULTS = Path(__file__).parent / "results"
MAX_SECONDS = 120.0
_POLL_SECONDS = 0.002


@dataclass
class Results:
    model: str
    tp: int
    dtype: str
    machine: dict[str, Any] = field(default_factory=describe_machine)
    #: Seconds, one value per round.
    start: list[float] = field(default_factory=list)
    restart: list[float] = field(default_factory=list)
    import_torch: list[float] = field(default_factory=list)

    @property
    def start_without_torch(self) -> float:
        return statistics.median(self.start) - statistics.median(self.import_torch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SHAPES), default="llama-110m")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--kv-cache-tokens", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    results = Results(options.model, options.tp, options.dtype)
    engine_options = EngineOptions(
        model_path=str(find_model(options.model)),
        tp=options.tp,
        dtype=options.dtype,
        kv_cache_tokens=options.kv_cache_tokens,
    )
    for _ in range(options.rounds):
        results.import_torch.append(_import_seconds())
        start, restart = _start_and_restart(engine_options)
        results.start.append(start)
        results.restart.append(restart)
    Console().print(table(results))
    path = RESULTS / f"start-{options.model}{f'-tp{options.tp}' if options.tp > 1 else ''}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps({**asdict(results), "start_without_torch": results.start_without_torch}, indent=2) + "\n"
    )


def _import_seconds() -> float:
    """Of a Python process that imports torch, and nothing else."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-P", "-c", "import torch"], check=True)
    return time.perf_counter() - began


def _start_and_restart(options: EngineOptions) -> tuple[float, float]:
    engine = NativeEngine(options)
    try:
        began = time.perf_counter()
        engine.start()
        start = time.perf_counter() - began
        os.kill(engine.health().rank_pids[-1], signal.SIGKILL)
        began = time.perf_counter()
        while (health := engine.health()).num_restarts == 0 or health.state is not EngineState.READY:
            if time.perf_counter() - began > MAX_SECONDS:
                raise TimeoutError(f"The engine was {health.state} {MAX_SECONDS:g} s after a rank was killed.")
            time.sleep(_POLL_SECONDS)
        return start, time.perf_counter() - began
    finally:
        engine.stop()


def table(results: Results) -> Table:
    shown = Table(title=f"{results.model}, {results.tp} rank(s), {results.dtype}; seconds", title_justify="left")
    for heading in ("", "median", "best"):
        shown.add_column(heading, justify="left" if not heading else "right")
    for name, values in (
        ("start to ready", results.start),
        ("a Python that imports torch", results.import_torch),
        ("killed rank to ready", results.restart),
    ):
        shown.add_row(name, f"{statistics.median(values):.2f}", f"{min(values):.2f}")
    shown.add_row("start without torch", f"{results.start_without_torch:.2f}", "")
    return shown


if __name__ == "__main__":
    main()
