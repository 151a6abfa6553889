"""Collectives between the ranks of one group: how ranks meet, and what can go wrong.

On CPUs through shared memory, or over Gloo where the compiled kernels are missing; NCCL on CUDA devices; nothing for a
single rank.
"""

from __future__ import annotations

import torch

from models.kernels.cpu.library import library
from models.sharding import Communicator, LocalCommunicator

__all__ = ["Communicator", "CommunicatorError", "CommunicatorTimeout", "LocalCommunicator", "connect"]


class CommunicatorError(Exception):
    """A collective failed, most likely because another rank died; the group must be restarted."""


class CommunicatorTimeout(CommunicatorError):
    """A rank did not take part in a collective in time; the group must be restarted."""


def connect(
    rendezvous: str,
    rank: int,
    world_size: int,
    *,
    device: torch.device | str = "cpu",
    timeout: float = 30.0,
    spins: bool = False,
) -> Communicator:
    """Meet the other ranks at the path of a `Rendezvous`; returns when all are there. Once per process.

    `timeout` seconds limit the meeting and each collective on CPUs afterwards; NCCL's collectives return before they
    end, so that the parent's step deadline is their limit. `spins` is for CPU ranks that have cores to themselves.
    Raises CommunicatorTimeout when a rank does not come.
    """
    device = torch.device(device)
    if world_size == 1:
        return LocalCommunicator()
    # Each is imported where it is chosen: torch.distributed alone takes a good part of a rank's start.
    if device.type == "cpu" and library() is not None:
        from workers.shared_memory import SharedMemoryCommunicator

        return SharedMemoryCommunicator(rendezvous, rank, world_size, timeout=timeout, spins=spins)
    from workers.torch_communicator import TorchCommunicator

    return TorchCommunicator(rendezvous, rank, world_size, device=device, timeout=timeout)
