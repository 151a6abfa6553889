"""Measured runs: each in a process of its own, which reads a job from a file and prints one line of JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.workloads import Workload, make_workload

#: Draws the tokens of the warm-up, which shares no prefix with what is measured.
_WARM_UP_SEED = 1_000_000
MAX_SECONDS = 3_600.0


@dataclass(frozen=True)
class Job:
    """What a runner does: load `model`, then run each of `runs`, the first of them to warm up."""

    model: str
    dtype: str
    num_threads: int
    tp: int
    max_length: int
    #: Whether prompts share prefixes, so that an engine's prefix cache is worth its cost.
    shares_prefixes: bool
    runs: tuple[Workload, ...]
    #: For ours alone: "int8", or None.
    quantize: str | None = None
    #: For ours alone: EngineOptions by their names.
    engine_options: Mapping[str, Any] | None = None
    gguf: str | None = None

    def encoded(self) -> str:
        runs = [[asdict(request) for request in run.requests] for run in self.runs]
        return json.dumps({**vars(self), "runs": runs})


def make_runs(name: str, *, num_runs: int, repeat: int = 1) -> tuple[Workload, ...]:
    """A warm-up, then `num_runs` runs of the same shapes, each with its own tokens."""
    seeds = [_WARM_UP_SEED, *range(num_runs)]
    return tuple(make_workload(name, seed=seed, repeat=repeat) for seed in seeds)


class RunError(Exception):
    """A measured process failed."""


def run_job(command: Sequence[str], job: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Run `command FILE`, FILE holding the job; returns what its last line says.

    What it writes to its standard error is shown only if it fails. It ends, with all that it started, at the latest
    when this returns or is interrupted. Raises RunError.
    """
    with tempfile.TemporaryDirectory(prefix="ryzanstein-benchmark-") as folder, _interrupted_by_sigterm():
        path, log = Path(folder, "job.json"), Path(folder, "log")
        path.write_text(job)
        with log.open("wb") as log_file:
            process = subprocess.Popen(
                [*command, str(path)],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log_file,
                start_new_session=True,
            )
            with process, _killed_at_last(process):
                output, _ = process.communicate(timeout=MAX_SECONDS)
        lines = [line for line in output.decode().splitlines() if line.startswith("{")]
        if process.returncode or not lines:
            raise RunError(f"{' '.join(command)} ended with status {process.returncode}:\n{log.read_text()[-4000:]}")
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM interrupts as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _killed_at_last(leader: subprocess.Popen[bytes]) -> Iterator[None]:
    """A peer's processes share a group, which Ctrl-C does not reach, and some outlive the one that started them."""
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(leader.pid, signal.SIGKILL)
