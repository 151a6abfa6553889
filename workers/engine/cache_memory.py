"""Gets the memory of a KV cache from the system while there is nothing else to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from models.layers.attention import KVCache

#: Got at once, in bytes: a large page or two, so that a step that begins meanwhile waits for some milliseconds.
_PIECE_BYTES: Final = 4 * 2**20
#: Without a step for so long a rank has nothing to do, in seconds.
_IDLE_SECONDS: Final = 0.05


class CacheMemory:
    """A thread that goes through the cache, block after block, whenever no step was run for a while.

    Memory that is got only when a step writes to it is got at the expense of that step.
    """

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._num_blocks = 0
        self._is_busy = False
        self._ended_at = 0.0

    def num_blocks(self) -> int:
        """So many of the first blocks have their memory."""
        return self._num_blocks

    def start(self) -> None:
        threading.Thread(target=self._run, name="cache-memory", daemon=True).start()

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """A step runs: nothing is got meanwhile, nor right after it."""
        self._is_busy = True
        try:
            yield
        finally:
            self._is_busy, self._ended_at = False, time.monotonic()

    def _run(self) -> None:
        cache = self._cache
        block_bytes = cache.keys[0][0].nbytes
        step = max(1, _PIECE_BYTES // block_bytes)
        for first in range(0, cache.num_blocks, step):
            last = min(first + step, cache.num_blocks)
            for is_done in cache.populate(first, last):
                if not is_done:  # no such system call: blocks get their memory as they are used
                    return
                while self._is_busy or time.monotonic() < self._ended_at + _IDLE_SECONDS:
                    time.sleep(_IDLE_SECONDS)
            self._num_blocks = last
