"""What share of an engine's time is not the model's: scheduling, sampling, texts, and the making of each step.

    python -m benchmarks.bookkeeping [--workload W1] [--dtype bfloat16] [--rounds 3]

Runs rank 0's loop in this process, without pipes, around a model that is timed. Writes
`benchmarks/results/bookkeeping-….json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.machine import cpus, describe_machine
from benchmarks.make_model import find_model
from benchmarks.workloads import NAMES, Workload, make_workload
from models.checkpoint import load_decoder, resolve_dtype
from models.config import ModelConfig
from models.decoder import Decoder
from models.kernels.cpu.kernels import cpu_kernels
from models.kernels.interface import PLAIN
from models.layers.attention import KVCache
from pipeline.schemas.generation import GenerationParams
from pipeline.tokenization import Tokenizer
from workers.backends.protocol import EngineRequest, OutcomeStatus
from workers.engine.block_manager import BlockManager
from workers.engine.engine import EngineCore
from workers.engine.messages import Step
from workers.engine.model_runner import Computed, ModelRunner
from workers.engine.options import EngineOptions
from workers.engine.scheduler import Scheduler

RESULTS = Path(__file__).parent / "results"


@dataclass
class Results:
    workload: str
    dtype: str
    machine: dict[str, Any] = field(default_factory=describe_machine)
    #: Seconds, one value per round.
    whole: list[float] = field(default_factory=list)
    model: list[float] = field(default_factory=list)
    num_steps: int = 0

    @property
    def share(self) -> float:
        """Of the time that is spent outside of the model."""
        return statistics.median(1 - model / whole for model, whole in zip(self.model, self.whole, strict=True))

    @property
    def step_ms(self) -> float:
        outside = statistics.median(whole - model for model, whole in zip(self.model, self.whole, strict=True))
        return outside / self.num_steps * 1000


class TimedModel:
    """A model with the seconds that were spent in it."""

    def __init__(self, run: Callable[[Step], Computed]) -> None:
        self._run = run
        self.seconds = 0.0

    def __call__(self, step: Step) -> Computed:
        began = time.perf_counter()
        computed = self._run(step)
        self.seconds += time.perf_counter() - began
        return computed


def measure(folder: Path, dtype: str, workloads: list[Workload]) -> Results:
    """The first of the workloads warms up; the others are its rounds."""
    results = Results(workloads[0].name, dtype)
    options = EngineOptions(model_path=str(folder))
    config = ModelConfig.from_pretrained(folder)
    tokenizer = Tokenizer.load(folder)
    num_blocks = sum(-(-workload.num_tokens // options.block_size) + len(workload.requests) for workload in workloads)
    decoder = load_decoder(
        folder, config, dtype=dtype, kernels=cpu_kernels(resolve_dtype(dtype, config, "cpu")) or PLAIN
    )
    model = TimedModel(_runner(decoder, dtype, num_blocks, options.block_size).run)
    core = EngineCore(
        run_model=model,
        scheduler=Scheduler(
            BlockManager(num_blocks, options.block_size),
            max_num_sequences=options.max_num_sequences,
            step_tokens=options.step_tokens,
        ),
        tokenizer=tokenizer,
        eos_token_ids={*config.eos_token_ids, *tokenizer.eos_token_ids},
        prefix_salt=config.prefix_salt,
    )
    for number, workload in enumerate(workloads):
        model.seconds, num_steps = 0.0, core.num_steps
        began = time.perf_counter()
        _run(core, workload)
        seconds = time.perf_counter() - began
        if number:
            results.whole.append(seconds)
            results.model.append(model.seconds)
            results.num_steps = core.num_steps - num_steps
    return results


def _runner(decoder: Decoder, dtype: str, num_blocks: int, block_size: int) -> ModelRunner:
    device, config = torch.device("cpu"), decoder.config
    cache = KVCache(
        num_layers=config.num_layers,
        num_blocks=num_blocks,
        block_size=block_size,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=resolve_dtype(dtype, config, device),
        device=device,
    )
    return ModelRunner(decoder, cache, device)


def _run(core: EngineCore, workload: Workload) -> None:
    for number, request in enumerate(workload.requests):
        core.submit(
            EngineRequest(
                id=str(number),
                prompt_token_ids=list(request.prompt_token_ids),
                params=GenerationParams(max_tokens=request.max_tokens, temperature=0.0, ignore_eos=True),
                seed=0,
            )
        )
    while not core.is_idle:
        for outcome in core.run(core.plan()):
            assert outcome.status is OutcomeStatus.FINISHED, outcome.error_message


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=NAMES, default="W1")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(len(cpus()))
    workloads = [make_workload(options.workload, seed=seed) for seed in range(options.rounds + 1)]
    results = measure(find_model(workloads[0].model), options.dtype, workloads)
    Console().print(
        f"{results.workload}: {results.share:.1%} of {statistics.median(results.whole):.2f} s are outside of the model,"
        f" {results.step_ms:.2f} ms of each of {results.num_steps} steps"
    )
    path = RESULTS / f"bookkeeping-{options.workload}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**asdict(results), "share": results.share}, indent=2) + "\n")


if __name__ == "__main__":
    main()
