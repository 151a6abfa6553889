"""Memory that is taken once: pages for packed weights, and buffers for what a step computes."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

#: Weights are taken from pieces of this size, so that they begin and end together on few large pages.
_PIECE_BYTES = 64 * 2**20
_ALIGNMENT = 64
#: What a large page holds on most systems; a buffer of at least half as much is worth one.
_LARGE_PAGE_BYTES = 2 * 2**20
#: Of glibc's mallopt: blocks of at least so many bytes are mappings of their own, which end when the block is freed.
_M_MMAP_THRESHOLD = -3
#: The largest that glibc would come to by itself, and what is enough for weights.
_USUAL_THRESHOLD = 32 * 2**20
_LOW_THRESHOLD = 2**20

#: Of Linux's madvise; Python has no name for it.
_MADV_POPULATE_WRITE = 23

_libc = ctypes.CDLL(None)


class Arena:
    """Memory on large pages where the system has them: a weight is read whole in every step, page after page."""

    def __init__(self) -> None:
        self._piece = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def take(self, num_elements: int, dtype: torch.dtype) -> Tensor:
        """[num_elements], not initialised, aligned to 64 bytes. It is given back when nothing of its piece is used."""
        size = num_elements * dtype.itemsize
        if self._used + size > len(self._piece):
            self._piece = large_pages(max(size, _PIECE_BYTES))
            self._used = 0
        taken = self._piece[self._used : self._used + size].view(dtype)
        self._used += -(-size // _ALIGNMENT) * _ALIGNMENT
        return taken


def large_pages(size: int) -> Tensor:
    """[size] bytes of zeros on large pages where the system has them, each taken when it is first written to.

    Reading gigabytes of weights or of cached keys through small pages was measured at two thirds of the speed.
    """
    # Private, since Linux by default has no large pages for what processes may share, as `mmap` does unless told.
    pages = mmap.mmap(-1, size + _LARGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(pages, dtype=torch.uint8)
    begin = -memory.data_ptr() % _LARGE_PAGE_BYTES
    return memory[begin : begin + size]


@contextmanager
def returned_when_freed() -> Iterator[None]:
    """Within, whatever is as large as a weight goes back to the system when it is freed.

    Else glibc takes such blocks from its heap once it has seen some of them come and go, and keeps them: the weights
    that were packed would stay a second time as free memory. Other systems' allocators are left as they are.
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, _LOW_THRESHOLD)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, _USUAL_THRESHOLD)


def populate(memory: Tensor) -> bool:
    """Get the pages of this memory from the system now, rather than when they are first written to.

    What they hold does not change, and others may use it meanwhile. On a host that gives memory to its guests only as
    they touch it, that was measured at two seconds for a gigabyte. False where the system can't (Linux before 5.14).
    """
    begin = memory.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    size = memory.data_ptr() + memory.numel() * memory.itemsize - begin
    # Not `mmap.madvise`, which would hold Python's lock all the while.
    done: int = _libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), _MADV_POPULATE_WRITE)
    return done == 0


class Workspace:
    """Buffers by name. What is taken is valid until the same name is taken again."""

    def __init__(self) -> None:
        #: Rises when a buffer is replaced by a larger one: addresses of before are nobody's then.
        self.generation = 0
        self._buffers: dict[Any, Tensor] = {}
        self._views: dict[Any, Tensor] = {}

    def take(self, name: Any, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """[rows, columns], not initialised."""
        view = self._views.get(name)
        if view is not None and view.shape == (rows, columns):
            return view
        with torch.inference_mode(False):  # a buffer that outlives the mode could not be written to outside of it
            buffer = self._buffers.get(name)
            if buffer is None or buffer.numel() < rows * columns:
                buffer = self._buffers[name] = _buffer(rows * columns, dtype)
                self.generation += 1
            view = self._views[name] = buffer[: rows * columns].view(rows, columns)
        return view


def _buffer(num_elements: int, dtype: torch.dtype) -> Tensor:
    """[num_elements], not initialised; on large pages where it is large, since a matrix reads many rows at once."""
    size = num_elements * dtype.itemsize
    if size < _LARGE_PAGE_BYTES // 2:
        return torch.empty(num_elements, dtype=dtype)
    return large_pages(-(-size // _LARGE_PAGE_BYTES) * _LARGE_PAGE_BYTES).view(dtype)
