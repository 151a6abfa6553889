"""Paged attention of a step: keys and values are written, then decoded with split contexts, or attended in tiles.

The torch reference is `PagedAttention` in `models/layers/attention.py`, which arranges the cache alike.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from models.kernels.gpu.programs import attention as programs
from models.layers.attention import KVCache, StepMetadata

#: Types of keys and values that the programs know.
TYPES = (torch.float32, torch.float16, torch.bfloat16)
#: Parts that a decoding sequence's context is split into; fixed, so that a recorded step serves every length.
SEGMENTS = 8
#: Fewest positions of a part: below it, another program costs more than it saves.
LEAST_SEGMENT = 128
#: Wider than any context.
_NO_WINDOW = 2**30
#: Keys, and as many values, of one tile: two tiles of each in flight fit into the shared memory of GPUs since Ampere.
_TILE_BYTES = 16 * 2**10
#: Least number of rows that tensor cores multiply; and of a tile of a prompt.
_DECODE_ROWS = 16
_PREFILL_ROWS = 64
#: Sequences that a program looks through at once for its own.
_SEARCHED = 256


class TritonPagedAttention:
    """As PagedAttention, with scores and sums in float32.

    A row's answer depends on its own sequence alone: neither on the others of the step nor on their number. Beyond
    what PagedAttention takes, rows can be padding: a slot below zero is written nowhere, and a sequence whose context
    length is 0 (of one token in the step) attends to zeros. Nothing here waits for the device.
    """

    def __init__(self, cache: KVCache, step: StepMetadata) -> None:
        keys = cache.keys[0]
        if keys.dtype not in TYPES:
            raise TypeError(f"The cache is of {keys.dtype}; Triton's attention knows {', '.join(map(str, TYPES))}.")
        self._cache = cache
        self._step = step
        self._num_tokens = step.slots.shape[0]
        self._num_sequences = step.context_lengths.shape[0]
        self._head_dim = keys.shape[-1]
        dim = max(16, triton.next_power_of_2(self._head_dim))
        self._dim = dim
        self._tile = min(64, max(16, _TILE_BYTES // (dim * keys.dtype.itemsize)))
        self._parts: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        if query.dtype != keys.dtype:
            raise TypeError(f"Queries of {query.dtype} can't be attended over a cache of {keys.dtype}.")
        query, key, value = (_rows(heads, self._head_dim) for heads in (query, key, value))
        self._write(keys, values, key, value)
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        self._decode(keys, values, query, window, out)
        if self._num_tokens > self._num_sequences:
            self._prefill(keys, values, query, window, out)
        return out

    def _write(self, keys: Tensor, values: Tensor, key: Tensor, value: Tensor) -> None:
        programs.write_cache[(self._num_tokens, keys.shape[1])](
            key,
            value,
            keys,
            values,
            self._step.slots,
            key.stride(0),
            value.stride(0),
            keys.stride(0),
            BLOCK_SIZE=self._cache.block_size,
            HEAD_DIM=self._head_dim,
            DIM=self._dim,
            num_warps=1,
        )

    def _decode(self, keys: Tensor, values: Tensor, query: Tensor, window: int | None, out: Tensor) -> None:
        step, heads = self._step, query.shape[1]
        parts = self._parts = self._parts or self._make_parts(heads, query.device)
        shared = self._shared(window) | {"HEADS": heads, "SEGMENTS": SEGMENTS, "LEAST": LEAST_SEGMENT}
        group = heads // keys.shape[1]
        programs.decode[(self._num_sequences, keys.shape[1], SEGMENTS)](
            query,
            keys,
            values,
            *parts,
            step.query_starts,
            step.context_lengths,
            step.block_tables,
            query.stride(0),
            keys.stride(0),
            step.block_tables.stride(0),
            self._scale,
            GROUP=group,
            BLOCK_SIZE=self._cache.block_size,
            ROWS=max(_DECODE_ROWS, triton.next_power_of_2(group)),
            IS_WIDENED=_is_widened(query.dtype),
            num_warps=4,
            num_stages=2,
            **shared,
        )
        programs.merge[(self._num_sequences, heads)](
            *parts, out, step.query_starts, step.context_lengths, num_warps=1, **shared
        )

    def _prefill(self, keys: Tensor, values: Tensor, query: Tensor, window: int | None, out: Tensor) -> None:
        step, heads = self._step, query.shape[1]
        group = heads // keys.shape[1]
        # Half as many of float32 in wide heads, or queries, keys and values would not fit together.
        least = _PREFILL_ROWS if self._dim * query.dtype.itemsize <= 512 else _PREFILL_ROWS // 2
        rows = max(least, triton.next_power_of_2(group))
        queries = rows // group
        programs.prefill[(self._num_tokens // queries + self._num_sequences, keys.shape[1])](
            query,
            keys,
            values,
            out,
            step.query_starts,
            step.context_lengths,
            step.block_tables,
            query.stride(0),
            keys.stride(0),
            step.block_tables.stride(0),
            self._scale,
            self._num_sequences,
            HEADS=heads,
            GROUP=group,
            BLOCK_SIZE=self._cache.block_size,
            ROWS=rows,
            QUERIES=queries,
            SEARCHED=_SEARCHED,
            IS_WIDENED=_is_widened(query.dtype),
            num_warps=4 if self._dim <= 128 else 8,
            num_stages=2,
            **self._shared(window),
        )

    @property
    def _scale(self) -> float:
        """To units of log2, since a power of two is what the device computes fastest."""
        return math.log2(math.e) / math.sqrt(self._head_dim)

    def _shared(self, window: int | None) -> dict[str, Any]:
        return {"WINDOW": window or _NO_WINDOW, "HEAD_DIM": self._head_dim, "DIM": self._dim, "TILE": self._tile}

    def _make_parts(self, heads: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Greatest scores, sums of weights, and weighted values of every segment; taken once for all layers."""
        shape = (self._num_sequences, heads, SEGMENTS)
        best, total = (torch.empty(shape, dtype=torch.float32, device=device) for _ in range(2))
        return best, total, torch.empty((*shape, self._head_dim), dtype=torch.float32, device=device)


def _rows(heads: Tensor, head_dim: int) -> Tensor:
    """Tokens may lie apart; the heads of one must not."""
    return heads if heads.stride()[1:] == (head_dim, 1) else heads.contiguous()


def _is_widened(dtype: torch.dtype) -> bool:
    return dtype is torch.bfloat16 and bool(triton.knobs.runtime.interpret)
