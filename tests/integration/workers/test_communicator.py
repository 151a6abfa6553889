from __future__ import annotations

import multiprocessing
import os
import signal
import stat
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from models.sharding import LocalCommunicator
from workers.communicator import CommunicatorError, CommunicatorTimeout, TorchCommunicator, connect
from workers.rendezvous import Rendezvous

#: Seconds that any of these worlds gets.
LIMIT = 120


def take_part(rendezvous: str, rank: int, world_size: int, behaviour: str, answers: Connection) -> None:
    """A rank's process: sends what its collectives gave, or the name and text of their error."""
    try:
        answers.send(collectives(rendezvous, rank, world_size, behaviour))
    except CommunicatorError as error:
        answers.send((type(error).__name__, str(error)))


def collectives(rendezvous: str, rank: int, world_size: int, behaviour: str) -> Any:
    # The slow rank's sleep is what the others must not wait for.
    communicator = connect(rendezvous, rank, world_size, timeout=2.0 if behaviour == "hangs" else 30.0)
    assert isinstance(communicator, TorchCommunicator)
    if rank == 1 and behaviour == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 1 and behaviour == "hangs":
        time.sleep(10.0)
    total = communicator.all_reduce(torch.full((2, 3), float(rank + 1)))
    half = communicator.all_reduce(torch.full((5,), 0.5, dtype=torch.bfloat16))
    parts = communicator.gather(torch.tensor([[rank, 7]]).t())  # not contiguous
    told = communicator.broadcast(torch.tensor([rank + 40]))
    communicator.barrier()
    communicator.close()
    return total.tolist(), half.tolist(), [part.tolist() for part in parts], told.tolist()


def run_world(world_size: int, behaviour: str = "works", *, present: int | None = None) -> list[Any]:
    """What every rank sent; None from one that died."""
    context = multiprocessing.get_context("spawn")
    with Rendezvous() as rendezvous:
        pipes = [context.Pipe(duplex=False) for _ in range(present or world_size)]
        ranks = [
            context.Process(target=take_part, args=(rendezvous.path, rank, world_size, behaviour, pipe[1]))
            for rank, pipe in enumerate(pipes)
        ]
        for process in ranks:
            process.start()
        for _, sender in pipes:
            sender.close()
        try:
            return [_received(receiver) for receiver, _ in pipes]
        finally:
            for process in ranks:
                process.kill()
                process.join()


def _received(receiver: Connection) -> Any:
    assert receiver.poll(LIMIT), "a rank neither answered nor died"
    try:
        return receiver.recv()
    except EOFError:
        return None


@pytest.mark.parametrize("world_size", [2, 4])
def test_collectives_reach_every_rank(world_size: int) -> None:
    answers = run_world(world_size)
    total = float(sum(range(1, world_size + 1)))
    for rank, (summed, half, parts, told) in enumerate(answers):
        assert summed == [[total] * 3] * 2
        assert half == [world_size * 0.5] * 5
        assert parts == ([[[each], [7]] for each in range(world_size)] if rank == 0 else [])
        assert told == [40]


def test_a_rank_that_dies_is_an_error_of_the_others() -> None:
    (kind, message), died = run_world(2, "dies")
    assert died is None
    assert kind == "CommunicatorError"
    assert message.startswith("all_reduce failed on rank 0 of 2: ")


def test_a_rank_that_hangs_is_a_timeout_of_the_others() -> None:
    (kind, message), _ = run_world(2, "hangs")
    assert kind == CommunicatorTimeout.__name__
    assert "all_reduce failed on rank 0 of 2: Timed out" in message


def test_a_rank_that_never_comes_is_a_timeout_at_the_meeting() -> None:
    ((kind, message),) = run_world(2, "hangs", present=1)
    assert kind == CommunicatorTimeout.__name__
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
