"""How long the sum over two CPU ranks takes, through shared memory and over Gloo in turn, each rank on its core.

    python -m benchmarks.all_reduce [--rounds 5]

Writes `benchmarks/results/all_reduce.json`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import cpus, describe_machine
from models.sharding import Communicator
from workers.rendezvous import Rendezvous
from workers.shared_memory import SharedMemoryCommunicator
from workers.torch_communicator import TorchCommunicator

RESULT = Path(__file__).parent / "results" / "all_reduce.json"
#: Bytes of bfloat16, and how often one is summed per round: 64 KiB are a step of 32 rows of 1,024.
SIZES = {8 * 1024: 4_000, 64 * 1024: 4_000, 4 * 1024 * 1024: 100}
WORLD_SIZE = 2
#: Gloo's are so much slower that fewer tell as much.
GLOO_SHARE = 8
_MAX_SECONDS = 300.0


@dataclass(frozen=True)
class Timing:
    kind: str
    num_bytes: int
    #: Microseconds, over all rounds.
    p50: float
    p99: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    machine = describe_machine()
    seconds: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for kind in ("shared memory", "gloo"):
            for num_bytes, measured in _measure(kind).items():
                seconds.setdefault((kind, num_bytes), []).extend(measured)
    timings = [
        Timing(kind, num_bytes, p50=_quantile(values, 0.5) * 1e6, p99=_quantile(values, 0.99) * 1e6)
        for (kind, num_bytes), values in seconds.items()
    ]
    Console().print(table(timings))
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"machine": machine, "timings": [asdict(each) for each in timings]}, indent=2) + "\n")


def _measure(kind: str) -> dict[int, list[float]]:
    """Seconds of every sum on rank 0, by bytes."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with Rendezvous() as rendezvous:
        ranks = [
            context.Process(target=_run_rank, args=(kind, rendezvous.path, rank, sender)) for rank in range(WORLD_SIZE)
        ]
        for process in ranks:
            process.start()
        sender.close()
        try:
            if not receiver.poll(_MAX_SECONDS):
                raise TimeoutError(f"{kind} was not done after {_MAX_SECONDS:g} seconds.")
            measured: dict[int, list[float]] = receiver.recv()
            return measured
        finally:
            for process in ranks:
                process.kill()
                process.join()


def _run_rank(kind: str, path: str, rank: int, answers: Connection) -> None:
    torch.set_num_threads(1)
    cores = cpus()
    has_own_cores = len(cores) >= WORLD_SIZE
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    communicator = _connect(kind, path, rank, has_own_cores)
    measured = {
        num_bytes: list(_sums(communicator, num_bytes, times if kind != "gloo" else times // GLOO_SHARE))
        for num_bytes, times in SIZES.items()
    }
    communicator.barrier()
    if rank == 0:
        answers.send(measured)
    communicator.close()


def _connect(kind: str, path: str, rank: int, spins: bool) -> SharedMemoryCommunicator | TorchCommunicator:
    if kind == "gloo":
        return TorchCommunicator(path, rank, WORLD_SIZE, device=torch.device("cpu"), timeout=60.0)
    return SharedMemoryCommunicator(path, rank, WORLD_SIZE, timeout=60.0, spins=spins)


def _sums(communicator: Communicator, num_bytes: int, times: int) -> Iterator[float]:
    tensor = torch.zeros(num_bytes // 2, dtype=torch.bfloat16)
    for number in range(times + times // 10):
        tensor.fill_(1.0)  # as a layer that has just written its output
        began = time.perf_counter()
        communicator.all_reduce(tensor)
        if number >= times // 10:
            yield time.perf_counter() - began


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def table(timings: list[Timing]) -> Table:
    shown = Table(title=f"all-reduce of bfloat16, {WORLD_SIZE} ranks; microseconds", title_justify="left")
    for heading in ("KiB", "p50", "p99", "Gloo p50", "p99", "p50, ratio"):
        shown.add_column(heading, justify="right")
    by_kind = {(each.kind, each.num_bytes): each for each in timings}
    for num_bytes in SIZES:
        ours, gloo = by_kind["shared memory", num_bytes], by_kind["gloo", num_bytes]
        numbers = (ours.p50, ours.p99, gloo.p50, gloo.p99, gloo.p50 / ours.p50)
        shown.add_row(str(num_bytes // 1024), *(f"{number:,.1f}" for number in numbers))
    return shown


if __name__ == "__main__":
    main()
