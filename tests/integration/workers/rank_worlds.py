"""Processes that meet as the ranks of one group, each doing what a test says."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import torch

from models.sharding import Communicator
from workers.communicator import CommunicatorError
from workers.rendezvous import Rendezvous
from workers.shared_memory import SharedMemoryCommunicator
from workers.torch_communicator import TorchCommunicator

#: Seconds that any of these worlds gets.
LIMIT = 120

#: What a rank does; gets its communicator, and returns what the test looks at. Found again by module and name.
Work = Callable[[Communicator], Any]


def run_world(
    kind: str,
    world_size: int,
    work: Work,
    *,
    present: int | None = None,
    num_answers: int | None = None,
    **options: Any,
) -> list[Any]:
    """What the work of every rank returned, or the name and text of its error; None from a rank that died.

    `kind` is "shared" or "gloo", `options` are the communicator's. Only `present` ranks come, and only the first
    `num_answers` are waited for.
    """
    context = multiprocessing.get_context("spawn")
    with Rendezvous() as rendezvous:
        pipes = [context.Pipe(duplex=False) for _ in range(present or world_size)]
        ranks = [
            context.Process(target=_take_part, args=(kind, rendezvous.path, rank, world_size, options, work, pipe[1]))
            for rank, pipe in enumerate(pipes)
        ]
        for process in ranks:
            process.start()
        for _, sender in pipes:
            sender.close()
        try:
            return [_received(receiver) for receiver, _ in pipes[:num_answers]]
        finally:
            for process in ranks:
                process.kill()
                process.join()


def _take_part(
    kind: str, path: str, rank: int, world_size: int, options: Mapping[str, Any], work: Work, answers: Connection
) -> None:
    torch.set_num_threads(1)
    try:
        communicator = _connect(kind, path, rank, world_size, **{"timeout": 60.0, **options})
        answers.send(work(communicator))
        communicator.close()
    except CommunicatorError as error:
        answers.send((type(error).__name__, str(error)))


def _connect(
    kind: str, path: str, rank: int, world_size: int, **options: Any
) -> SharedMemoryCommunicator | TorchCommunicator:
    if kind == "shared":
        return SharedMemoryCommunicator(path, rank, world_size, **options)
    return TorchCommunicator(path, rank, world_size, device=torch.device("cpu"), **options)


def _received(receiver: Connection) -> Any:
    assert receiver.poll(LIMIT), "a rank neither answered nor died"
    try:
        return receiver.recv()
    except EOFError:
        return None
