from __future__ import annotations

import hashlib
import random
import re
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from rank_worlds import run_world
from torch import Tensor

from models.kernels.cpu.library import library
from models.sharding import Communicator
from workers import shared_memory
from workers.communicator import CommunicatorError, connect
from workers.rendezvous import Rendezvous

pytestmark = pytest.mark.skipif(library() is None, reason="the CPU kernels were not built")

SLOT_BYTES = 1_024
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64]
#: Of elements: none, odd ones, those around a slot, and several slots.
SIZES = [0, 1, 3, 63, 64, 65, 255, 256, 257, 511, 512, 513, 5_003]
NUM_REPEATS = 10_000


@dataclass
class Findings:
    """Of one rank."""

    #: Sizes and types whose sum was wrong.
    wrong_sums: list[str]
    #: Of the bits of all sums.
    digest: str
    #: Sizes whose gathering or telling was wrong.
    wrong_copies: list[int]
    #: Numbers of those among many collectives whose result was wrong.
    wrong_repeats: list[int]
    #: A tensor of which one column was summed and the other one told.
    columns: list[list[float]]
    #: Of the memory that they share, as the kernel shows it once the ranks had met.
    names: set[str]


def part(rank: int, size: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1_000 * size + rank)
    if dtype is torch.int64:
        return torch.randint(-(2**40), 2**40, (size,), generator=generator)
    return (torch.randn(size, generator=generator) * 10 ** (3 * torch.rand(size, generator=generator))).to(dtype)


def summed(world_size: int, size: int, dtype: torch.dtype) -> Tensor:
    """In the order of the ranks, in float32 where the parts are narrower."""
    wide = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
    total = part(0, size, dtype).to(wide)
    for rank in range(1, world_size):
        total += part(rank, size, dtype)
    return total.to(dtype)


def every_bfloat16(rank: int) -> Tensor:
    """Each once, NaN and infinities among them, in an order of this rank."""
    generator = torch.Generator().manual_seed(rank)
    return torch.randperm(2**16, generator=generator).sub(2**15).to(torch.int16).view(torch.bfloat16)


def try_all(communicator: Communicator) -> Findings:
    wrong_sums = []
    digest = hashlib.sha256()
    for dtype in DTYPES:
        for size in SIZES:
            tensor = part(communicator.rank, size, dtype)
            assert communicator.all_reduce(tensor) is tensor
            digest.update(tensor.view(torch.uint8).numpy().tobytes())
            if not torch.equal(tensor, summed(communicator.world_size, size, dtype)):
                wrong_sums.append(f"{size} x {dtype}")
    strange = every_bfloat16(communicator.rank)
    communicator.all_reduce(strange)
    digest.update(strange.view(torch.uint8).numpy().tobytes())
    expected = sum(every_bfloat16(rank).float() for rank in range(communicator.world_size)).bfloat16()
    if not torch.allclose(strange, expected, rtol=0, atol=0, equal_nan=True):
        wrong_sums.append("every bfloat16")
    columns = torch.zeros(4, 2)
    communicator.all_reduce(columns[:, 1].add_(communicator.rank + 1))
    communicator.broadcast(columns[:, 0].add_(communicator.rank + 5))
    return Findings(
        wrong_sums=wrong_sums,
        digest=digest.hexdigest(),
        wrong_copies=[size for size in SIZES if not copies_are_right(communicator, size)],
        wrong_repeats=[number for number in range(NUM_REPEATS) if not repeat_is_right(communicator, number)],
        columns=columns.tolist(),
        names=names_of_shared_memory(),
    )


def names_of_shared_memory() -> set[str]:
    mappings = Path("/proc/self/maps").read_text().splitlines()
    return {mapping.split(maxsplit=5)[5] for mapping in mappings if "ryzanstein-ranks-" in mapping}


def copies_are_right(communicator: Communicator, size: int) -> bool:
    rank, world_size = communicator.rank, communicator.world_size
    parts = communicator.gather(part(rank, size, torch.bfloat16))
    told = communicator.broadcast(part(rank, size, torch.int64))
    is_gathered = len(parts) == (world_size if rank == 0 else 0) and all(
        torch.equal(each, part(other, size, torch.bfloat16)) for other, each in enumerate(parts)
    )
    return is_gathered and torch.equal(told, part(0, size, torch.int64))


def repeat_is_right(communicator: Communicator, number: int) -> bool:
    """Now and then a rank is late, each in its own way."""
    rank, world_size = communicator.rank, communicator.world_size
    if random.Random(number * world_size + rank).random() < 0.002:
        time.sleep(0.003)
    tensor = torch.tensor([rank, number, 1], dtype=torch.float32)
    match number % 4:
        case 0 | 1:
            total = [world_size * (world_size - 1) / 2, number * world_size, world_size]
            return communicator.all_reduce(tensor).tolist() == total
        case 2:
            parts = [each.tolist() for each in communicator.gather(tensor)]
            return parts == ([[other, number, 1] for other in range(world_size)] if rank == 0 else [])
        case _:
            return communicator.broadcast(tensor).tolist() == [0, number, 1]


@pytest.fixture(scope="module", params=[2, 3, 4])
def findings(request: pytest.FixtureRequest) -> list[Findings]:
    """Of every rank, in worlds with more ranks than cores among them."""
    found = run_world("shared", request.param, try_all, slot_bytes=SLOT_BYTES)
    assert all(isinstance(each, Findings) for each in found), found
    return found


def test_sums_are_in_the_order_of_the_ranks_and_the_same_to_the_bit(findings: list[Findings]) -> None:
    assert [each.wrong_sums for each in findings] == [[]] * len(findings)
    assert len({each.digest for each in findings}) == 1


def test_every_size_is_gathered_and_broadcast(findings: list[Findings]) -> None:
    assert [each.wrong_copies for each in findings] == [[]] * len(findings)


def test_thousands_of_collectives_in_a_row_are_right_whoever_is_late(findings: list[Findings]) -> None:
    assert [each.wrong_repeats for each in findings] == [[]] * len(findings)


def test_tensors_that_are_not_contiguous_are_changed_in_place(findings: list[Findings]) -> None:
    total = len(findings) * (len(findings) + 1) / 2
    assert [each.columns for each in findings] == [[[5.0, total]] * 4] * len(findings)


def test_the_shared_memory_has_no_name_once_the_ranks_have_met(findings: list[Findings]) -> None:
    for each in findings:
        assert each.names
        assert all(name.endswith(" (deleted)") for name in each.names)


def use_connect(path: str, communicator: Communicator) -> str:
    return type(connect(path, communicator.rank, communicator.world_size)).__name__


def test_ranks_on_cpus_choose_shared_memory() -> None:
    with Rendezvous() as other:
        assert run_world("gloo", 2, partial(use_connect, other.path)) == ["SharedMemoryCommunicator"] * 2


def test_a_segment_that_does_not_fit_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with Rendezvous() as rendezvous, pytest.raises(CommunicatorError, match=re.escape("--shm-size")):
        shared_memory.SharedMemoryCommunicator(rendezvous.path, 0, 2, timeout=1.0, slot_bytes=2**58)
