"""Attention as strategies that a decoder layer calls, and the plain torch references of each.

A fast kernel is one more class behind the same protocol. It lives in `models/kernels/`, reads the same `KVCache` and
`StepMetadata`, and is tested against the class here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.kernels.cpu.memory import large_pages, populate


class Attention(Protocol):
    """Carries what is known about the sequences of one step, so that the layers need not."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
        """Attend causally within each sequence.

        query [tokens, heads, head_dim], key and value [tokens, kv_heads, head_dim] -> [tokens, heads, head_dim].
        `window` is the number of last positions that a position sees, its own among them; None is all.
        """


class CausalAttention:
    """Whole sequences of one length, without a cache: training and parity. Differentiable.

    The flat tokens are `num_sequences` runs of `length`. Sequences padded on the right are fine: no position sees a
    later one.
    """

    def __init__(self, num_sequences: int, length: int) -> None:
        self._shape = (num_sequences, length)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
        length = self._shape[1]
        query, key, value = (
            heads.view(*self._shape, *heads.shape[1:]).transpose(1, 2) for heads in (query, key, value)
        )
        if window is None or window >= length:
            attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        else:
            positions = torch.arange(length, device=query.device)
            mask = _visible(positions, positions, window)
            attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        return attended.transpose(1, 2).flatten(0, 1)


class KVCache:
    """Keys and values of one rank in blocks of fixed size, per layer [num_blocks, kv_heads, block_size, head_dim].

    How the [block_size, head_dim] elements of one head in one block are arranged is up to the attention that writes and
    reads them, which is the same one for as long as the cache lives: plain rows here, pairs in the CPU kernels.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        shape = (num_blocks, num_kv_heads, block_size, head_dim)
        self._hold(*([_zeros(shape, dtype, device) for _ in range(num_layers)] for _ in range(2)))

    @classmethod
    def over(cls, keys: list[Tensor], values: list[Tensor]) -> KVCache:
        """A cache in memory that is there already, one tensor per layer."""
        cache = cls.__new__(cls)
        cache._hold(keys, values)
        return cache

    def _hold(self, keys: list[Tensor], values: list[Tensor]) -> None:
        self.num_blocks, self.num_kv_heads, self.block_size, _ = keys[0].shape
        self.keys, self.values = keys, values
        self._copies = {kind: keys[0].new_empty(0) for kind in ("keys", "values")}

    @staticmethod
    def bytes_per_token(*, num_layers: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Memory that one cached token takes on one rank."""
        return 2 * num_layers * num_kv_heads * head_dim * dtype.itemsize

    def populate(self, first: int, last: int) -> Iterator[bool]:
        """Get the memory of blocks [first, last) from the system, a piece at a time; see `memory.populate`."""
        for cached in (*self.keys, *self.values):
            yield populate(cached[first:last])

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Put key and value [tokens, kv_heads, head_dim] at slots [tokens] = block * block_size + offset."""
        blocks, offsets = slots // self.block_size, slots % self.block_size
        self.keys[layer][blocks, :, offsets] = key
        self.values[layer][blocks, :, offsets] = value

    def read(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of keys and values of blocks [sequences, blocks], each [sequences, kv_heads, slots, head_dim].

        They last until the next read: memory is taken once, since a fresh page costs far more than copying it.
        """
        heads = torch.arange(self.num_kv_heads, device=blocks.device)[:, None]
        rows = blocks[:, None].long() * self.num_kv_heads + heads  # [sequences, kv_heads, blocks]
        return self._read("keys", self.keys[layer], rows), self._read("values", self.values[layer], rows)

    def _read(self, kind: str, cached: Tensor, rows: Tensor) -> Tensor:
        of_heads = cached.flatten(0, 1).flatten(1)  # what a block has of a head is selected many times faster as a row
        size = rows.numel() * of_heads.shape[1]
        if self._copies[kind].numel() < size:
            with torch.inference_mode(False):  # or the copy could be written to in inference mode alone
                self._copies[kind] = cached.new_empty(size)
        copy = self._copies[kind][:size].view(rows.numel(), -1)
        torch.index_select(of_heads, 0, rows.flatten(), out=copy)
        return copy.view(*rows.shape[:2], -1, cached.shape[-1])


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    if torch.device(device).type == "cpu":
        return large_pages(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)
    return torch.zeros(shape, dtype=dtype, device=device)


@dataclass(frozen=True, kw_only=True)
class StepMetadata:
    """Where the tokens of one step belong. The flat tokens are the sequences' parts, one after another.

    On the device of the cache, each contiguous.
    """

    #: [tokens] int64: block * block_size + offset, where each token's key and value are written.
    slots: Tensor
    #: [sequences + 1] int32: where each sequence's part of the flat tokens begins, each at least 1 long; then the end.
    query_starts: Tensor
    #: [sequences] int32: tokens in the cache after this step, those of this step being the last of them.
    context_lengths: Tensor
    #: [sequences, blocks] int32: block numbers in order. What lies past a sequence's context is not looked at.
    block_tables: Tensor

    @classmethod
    def of(
        cls,
        query_lengths: Sequence[int],
        context_lengths: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        *,
        block_size: int,
        device: torch.device | str = "cpu",
    ) -> StepMetadata:
        """From numbers per sequence: its tokens of this step, its tokens after it, and its blocks in order."""
        queries = np.asarray(query_lengths, dtype=np.int32)
        contexts = np.asarray(context_lengths, dtype=np.int32)
        tables = np.zeros((len(contexts), max(map(len, block_tables))), dtype=np.int32)
        for row, table in zip(tables, block_tables, strict=True):
            row[: len(table)] = table
        starts = np.concatenate((np.zeros(1, dtype=np.int32), queries.cumsum(dtype=np.int32)))
        sequences = np.repeat(np.arange(len(contexts)), queries)
        positions = np.arange(starts[-1]) + (contexts - starts[1:])[sequences]
        slots = tables[sequences, positions // block_size].astype(np.int64) * block_size + positions % block_size
        flat = (torch.from_numpy(each).to(device) for each in (slots, starts, contexts, tables))
        return cls(**dict(zip(("slots", "query_starts", "context_lengths", "block_tables"), flat, strict=True)))


class PagedAttention:
    """Serving: writes the step's keys and values into the cache, then attends over each sequence's blocks.

    Sequences of one new token (decoding) are attended to together, padded to the longest; the others one by one.
    What a block holds outside its sequence is never read as a number: it may be the rest of another sequence, NaN
    among it, and NaN times a weight of zero is NaN.
    """

    def __init__(self, cache: KVCache, step: StepMetadata) -> None:
        self._cache = cache
        self._slots = step.slots
        self._plans = _plan(step, cache.block_size)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
        self._cache.write(layer, self._slots, key, value)
        attended = torch.empty_like(query)
        for plan in self._plans:
            attended[plan.rows] = plan.attend(self._cache, layer, query[plan.rows], window)
        return attended


class _Plan:
    """Some sequences with the same number of new tokens, attended to together; made once per step for all layers."""

    def __init__(self, rows: slice | Tensor, query_length: int, context_lengths: list[int], blocks: Tensor) -> None:
        device = blocks.device
        self.rows = rows
        self._query_length = query_length
        self._length = max(context_lengths)
        contexts = torch.tensor(context_lengths, device=device)[:, None]
        self._keys_at = torch.arange(self._length, device=device)
        # [sequences, query_length]
        self._queries_at = contexts - query_length + torch.arange(query_length, device=device)
        # Where, in [sequences, length], a sequence has ended; None where all are as long as the longest.
        is_ragged = len(set(context_lengths)) > 1
        self._beyond = (self._keys_at >= contexts).nonzero(as_tuple=True) if is_ragged else None
        self._blocks = blocks  # [sequences, blocks]
        self._masks: dict[int | None, Tensor] = {}

    def attend(self, cache: KVCache, layer: int, query: Tensor, window: int | None) -> Tensor:
        """query [rows, heads, head_dim] -> [rows, heads, head_dim]"""
        query = query.view(-1, self._query_length, *query.shape[1:]).transpose(1, 2)
        key, value = (self._clean(copy) for copy in cache.read(layer, self._blocks))
        attended = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=self._mask(window), enable_gqa=True
        )
        return attended.transpose(1, 2).flatten(0, 1)

    def _clean(self, copy: Tensor) -> Tensor:
        """[sequences, kv_heads, slots, head_dim] -> [sequences, kv_heads, length, head_dim], zeros past each end."""
        heads = copy[:, :, : self._length]
        if self._beyond is not None:
            sequences, positions = self._beyond
            heads[sequences, :, positions] = 0
        return heads

    def _mask(self, window: int | None) -> Tensor:
        """[sequences, 1, query_length, length]; true is seen."""
        if window not in self._masks:
            self._masks[window] = _visible(self._queries_at, self._keys_at, window)[:, None]
        return self._masks[window]


def _plan(step: StepMetadata, block_size: int) -> list[_Plan]:
    """Decoding sequences in one plan, every other sequence in one of its own."""
    starts, contexts = step.query_starts.tolist(), step.context_lengths.tolist()
    plans: list[_Plan] = []
    decoding: list[int] = []
    for index, context in enumerate(contexts):
        rows = slice(starts[index], starts[index + 1])
        query_length = rows.stop - rows.start
        if query_length == 1:
            decoding.append(index)
            continue
        plans.append(_Plan(rows, query_length, [context], _blocks(step, [index], context, block_size)))
    if decoding:
        lengths = [contexts[index] for index in decoding]
        at = step.query_starts[:-1][decoding].long()
        blocks = _blocks(step, decoding, max(lengths), block_size)
        # Past its context a row of the table may hold anything: block 0 can be read, and is then not looked at.
        filled = -(-step.context_lengths[decoding] // block_size)
        blocks = blocks.where(torch.arange(blocks.shape[1], device=blocks.device) < filled[:, None], 0)
        plans.append(_Plan(at, 1, lengths, blocks))
    return plans


def _blocks(step: StepMetadata, sequences: list[int], context: int, block_size: int) -> Tensor:
    """[sequences, blocks] of as many blocks as a context fills."""
    return step.block_tables[sequences, : -(-context // block_size)]


def _visible(queries_at: Tensor, keys_at: Tensor, window: int | None) -> Tensor:
    """[…, queries] and [keys] positions -> [..., queries, keys]: the key is not later, and within the window."""
    distance = queries_at[..., None] - keys_at
    visible = distance >= 0
    return visible if window is None else visible & (distance < window)
