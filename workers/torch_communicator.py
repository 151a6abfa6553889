"""Collectives through torch.distributed: NCCL on CUDA devices, and Gloo where CPUs have nothing better."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist

from workers.communicator import CommunicatorError, CommunicatorTimeout

#: Gloo puts the line of its source before what went wrong.
_SOURCE_FILE = re.compile(r"^\[[^\]]*\] ")
_TIMED_OUT = re.compile(r"tim(ed|e)[ -]?out", re.IGNORECASE)


class TorchCommunicator:
    """Over torch.distributed, on the loopback interface: all ranks of a group are on one host.

    After an error it is of no more use: some ranks may have left the collective and others not.
    """

    def __init__(self, rendezvous: str, rank: int, world_size: int, *, device: torch.device, timeout: float) -> None:
        self.rank = rank
        self.world_size = world_size
        # Without it Gloo and NCCL look up the host's name, which may be unknown or lead outside.
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, _loopback())
        on_cuda = device.type == "cuda"
        if on_cuda:
            torch.cuda.set_device(device)
        limit = timedelta(seconds=timeout)
        with self._named("meeting the other ranks"):
            store = dist.FileStore(rendezvous, world_size)  # type: ignore[attr-defined]
            store.set_timeout(limit)
            dist.init_process_group(
                "nccl" if on_cuda else "gloo", store=store, rank=rank, world_size=world_size, timeout=limit
            )
            # Connections are made by the first collective: make it now, so that a missing rank is noticed here.
            self.all_reduce(torch.zeros(1, device=device))

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum over all ranks, in place; the result is the same to the last bit on every rank."""
        with self._named("all_reduce"):
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The ranks' tensors (of one shape), by rank, on rank 0; an empty list on the others."""
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)] if self.rank == 0 else []
        with self._named("gather"):
            dist.gather(tensor.contiguous(), parts or None, dst=0)
        return parts

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Copy rank 0's tensor into those of the others, in place."""
        with self._named("broadcast"):
            dist.broadcast(tensor, src=0)
        return tensor

    def barrier(self) -> None:
        with self._named("barrier"):
            dist.barrier()

    def close(self) -> None:
        """Leave the group; the process may meet another one afterwards."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def _named(self, operation: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # torch has no narrower type for Gloo's faults
            where = f"{operation} failed on rank {self.rank} of {self.world_size}"
            text = _SOURCE_FILE.sub("", str(error)).partition(". ")[0] or type(error).__name__
            kind = CommunicatorTimeout if _TIMED_OUT.search(text) else CommunicatorError
            raise kind(f"{where}: {text}") from error


def _loopback() -> str:
    """The loopback interface: `lo` on Linux, `lo0` on macOS."""
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
