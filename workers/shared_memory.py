"""Collectives between ranks on CPUs of one host, through memory that all of them have mapped."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from ctypes import c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from models.kernels.cpu.library import library
from workers.communicator import CommunicatorError, CommunicatorTimeout

#: What fits into one exchange, in bytes; larger tensors take several. Two such slots per rank stay in its core's cache.
SLOT_BYTES = 256 * 1024
#: How long a rank that waits spins before it gives way to other processes, in microseconds. Ranks in step wait a few.
SPIN_MICROSECONDS = 50
#: Numbers of `enum Type` in kernels.hpp, of those that are summed there.
_SUMMED = {torch.float32: 0, torch.bfloat16: 1}
#: Of the status of a collective: which rank, and beyond it what is wrong with it.
_MAX_RANKS = 64
_LATE = 1


class SharedMemoryCommunicator:
    """Each rank is a process of its own. After an error it is of no more use: the ranks are no longer in step.

    The file behind the memory has no name any more once the ranks have met, so that nothing of it can be left behind.
    Each rank holds a lock on one byte of it: a rank that died has lost its lock, which the others see while they wait.
    """

    def __init__(
        self,
        rendezvous: str,
        rank: int,
        world_size: int,
        *,
        timeout: float,
        spins: bool = False,
        slot_bytes: int = SLOT_BYTES,
    ) -> None:
        """`spins` is for ranks that have cores to themselves: they wait busily, at first.

        Raises CommunicatorTimeout when a rank does not come, and CommunicatorError where memory is missing.
        """
        self.rank = rank
        self.world_size = world_size
        self._timeout = timeout
        functions = _functions()
        num_bytes = functions.rz_ranks_bytes(world_size, slot_bytes)
        self._file = _open_segment(rendezvous, num_bytes)
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)
        except OSError as error:
            raise CommunicatorError(f"rank {rank} of {world_size} can't lock {rendezvous}: {error}") from error
        self._memory = mmap.mmap(self._file, num_bytes)
        self._start = ctypes.c_char.from_buffer(self._memory)
        spin = SPIN_MICROSECONDS if spins else 0
        self._handle = functions.rz_ranks_open(
            ctypes.addressof(self._start), self._file, rank, world_size, slot_bytes, spin, int(timeout * 1e6)
        )
        if not self._handle:
            raise CommunicatorError(f"{world_size} ranks are more than a group can have; the most are {_MAX_RANKS}")
        self._sum = functions.rz_ranks_all_reduce
        self._gather = functions.rz_ranks_gather
        self._broadcast = functions.rz_ranks_broadcast
        self._barrier = functions.rz_ranks_barrier
        self._check("meeting the other ranks", self._barrier(self._handle))
        # All have it open: whoever is first takes its name away.
        Path(rendezvous).unlink(missing_ok=True)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum over all ranks, in place; the result is the same to the last bit on every rank.

        16-bit floats are added in float32, in the order of the ranks, and rounded once.
        """
        kind = _SUMMED.get(tensor.dtype)
        if kind is None or not tensor.is_contiguous():
            return self._all_reduce_copied(tensor)
        status = self._sum(self._handle, kind, tensor.data_ptr(), tensor.numel())
        if status:
            self._check("all_reduce", status)
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The ranks' tensors (of one shape), by rank, on rank 0; an empty list on the others."""
        return self._gather_all(tensor, "gather") if self.rank == 0 else self._give(tensor)

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Copy rank 0's tensor into those of the others, in place."""
        copied = tensor.contiguous()
        self._check("broadcast", self._broadcast(self._handle, copied.data_ptr(), _num_bytes(copied)))
        return tensor if copied is tensor else tensor.copy_(copied)

    def barrier(self) -> None:
        self._check("barrier", self._barrier(self._handle))

    def close(self) -> None:
        """Leave the group: for the others this rank is gone."""
        _functions().rz_ranks_close(self._handle)
        self._handle = None
        del self._start
        self._memory.close()
        os.close(self._file)

    def _all_reduce_copied(self, tensor: Tensor) -> Tensor:
        if tensor.dtype in (*_SUMMED, torch.float16):
            wide = torch.float32 if tensor.dtype is torch.float16 else tensor.dtype
            return tensor.copy_(self.all_reduce(tensor.to(wide, memory_format=torch.contiguous_format, copy=True)))
        total, *others = self._gather_all(tensor, "all_reduce")
        for other in others:
            total += other
        return tensor.copy_(total)

    def _gather_all(self, tensor: Tensor, operation: str) -> list[Tensor]:
        copied = tensor.contiguous()
        parts = torch.empty((self.world_size, *tensor.shape), dtype=tensor.dtype)
        status = self._gather(self._handle, copied.data_ptr(), _num_bytes(copied), parts.data_ptr())
        self._check(operation, status)
        return list(parts.unbind())

    def _give(self, tensor: Tensor) -> list[Tensor]:
        copied = tensor.contiguous()
        self._check("gather", self._gather(self._handle, copied.data_ptr(), _num_bytes(copied), None))
        return []

    def _check(self, operation: str, status: int) -> None:
        if not status:
            return
        kind, other = divmod(status, _MAX_RANKS)
        where = f"{operation} failed on rank {self.rank} of {self.world_size}"
        if kind == _LATE:
            raise CommunicatorTimeout(f"{where}: Timed out after waiting {self._timeout:g} seconds for rank {other}")
        raise CommunicatorError(f"{where}: rank {other} is gone")


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _open_segment(path: str, num_bytes: int) -> int:
    """The file that all ranks share, whoever of them makes it; its memory is there, or this fails."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # Taken now: memory that is missing later would be a bus error.
        os.posix_fallocate(file, 0, num_bytes)
    except OSError as error:
        raise CommunicatorError(
            f"{path} can't be made with {num_bytes} bytes, which the ranks share: {error.strerror}. "
            "Make room there; for a container's /dev/shm that is the option --shm-size."
        ) from error
    return file


@cache
def _functions() -> ctypes.CDLL:
    functions = library()
    if functions is None:
        raise CommunicatorError("the CPU kernels were not built at installation; use Gloo")
    functions.rz_ranks_bytes.argtypes = (c_int32, c_int64)
    functions.rz_ranks_bytes.restype = c_int64
    functions.rz_ranks_open.argtypes = (c_void_p, c_int32, c_int32, c_int32, c_int64, c_int64, c_int64)
    functions.rz_ranks_open.restype = c_void_p
    functions.rz_ranks_close.argtypes, functions.rz_ranks_close.restype = (c_void_p,), None
    functions.rz_ranks_all_reduce.argtypes = (c_void_p, c_int32, c_void_p, c_int64)
    functions.rz_ranks_gather.argtypes = (c_void_p, c_void_p, c_int64, c_void_p)
    functions.rz_ranks_broadcast.argtypes = (c_void_p, c_void_p, c_int64)
    functions.rz_ranks_barrier.argtypes = (c_void_p,)
    return functions
