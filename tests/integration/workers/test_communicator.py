"""What holds for every communicator."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_worlds import run_world

from models.kernels.cpu.library import library
from models.sharding import Communicator, LocalCommunicator
from workers.communicator import CommunicatorTimeout, connect
from workers.rendezvous import Rendezvous

without_kernels = pytest.mark.skipif(library() is None, reason="the CPU kernels were not built")
both_kinds = pytest.mark.parametrize("kind", ["gloo", pytest.param("shared", marks=without_kernels)])


def use_all(communicator: Communicator) -> Any:
    rank = communicator.rank
    total = communicator.all_reduce(torch.full((2, 3), float(rank + 1)))
    half = communicator.all_reduce(torch.full((5,), 0.5, dtype=torch.bfloat16))
    parts = communicator.gather(torch.tensor([[rank, 7]]).t())  # not contiguous
    told = communicator.broadcast(torch.tensor([rank + 40]))
    communicator.barrier()
    return total.tolist(), half.tolist(), [part.tolist() for part in parts], told.tolist()


def die_on_rank_1(communicator: Communicator) -> None:
    if communicator.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    communicator.all_reduce(torch.ones(3))


def hang_on_rank_1(communicator: Communicator) -> None:
    if communicator.rank == 1:
        time.sleep(60.0)  # what the others must not wait for
    communicator.all_reduce(torch.ones(3))


@both_kinds
@pytest.mark.parametrize("world_size", [2, 4])
def test_collectives_reach_every_rank(kind: str, world_size: int) -> None:
    total = float(sum(range(1, world_size + 1)))
    for rank, (summed, half, parts, told) in enumerate(run_world(kind, world_size, use_all)):
        assert summed == [[total] * 3] * 2
        assert half == [world_size * 0.5] * 5
        assert parts == ([[[each], [7]] for each in range(world_size)] if rank == 0 else [])
        assert told == [40]


@both_kinds
def test_a_rank_that_dies_is_an_error_of_the_others(kind: str) -> None:
    (error, message), died = run_world(kind, 2, die_on_rank_1)
    assert died is None
    assert error == "CommunicatorError"
    assert message.startswith("all_reduce failed on rank 0 of 2: ")


@both_kinds
def test_a_rank_that_hangs_is_a_timeout_of_the_others(kind: str) -> None:
    ((error, message),) = run_world(kind, 2, hang_on_rank_1, timeout=2.0, num_answers=1)
    assert error == CommunicatorTimeout.__name__
    assert "all_reduce failed on rank 0 of 2: Timed out" in message


@both_kinds
def test_a_rank_that_never_comes_is_a_timeout_at_the_meeting(kind: str) -> None:
    ((error, message),) = run_world(kind, 2, use_all, timeout=1.0, present=1)
    assert error == CommunicatorTimeout.__name__
    assert "meeting the other ranks failed on rank 0 of 2" in message


def test_one_rank_alone_needs_no_one() -> None:
    communicator = connect("nowhere", 0, 1)
    assert isinstance(communicator, LocalCommunicator)
    tensor = torch.ones(3)
    assert communicator.all_reduce(tensor) is tensor
    assert communicator.broadcast(tensor) is tensor
    assert communicator.gather(tensor) == [tensor]
    communicator.barrier()


def test_a_rendezvous_is_private_fresh_and_removed() -> None:
    with Rendezvous() as first, Rendezvous() as second:
        assert first.path != second.path
        folder = Path(first.path).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        first.remove()
        assert not folder.exists()
    assert not Path(second.path).parent.exists()


def test_folders_of_the_killed_are_removed_and_those_of_the_living_kept() -> None:
    script = (
        "import os, signal; from workers.rendezvous import Rendezvous; other = Rendezvous();"
        "open(other.path, 'w').close(); print(other.path, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    with Rendezvous() as living:
        killed = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
        abandoned = Path(killed.stdout.strip())
        assert abandoned.exists()

        with Rendezvous() as other:
            assert not abandoned.parent.exists()
            assert Path(living.path).parent.exists()
            assert Path(other.path).parent.exists()
