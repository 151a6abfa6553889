"""Paged attention of a step by one call of the native kernel per layer."""

from __future__ import annotations

import ctypes
import weakref
from ctypes import c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from models.kernels.cpu.library import TYPES, Native, library
from models.layers.attention import Attention, KVCache, PagedAttention, StepMetadata

#: Of kernels.hpp.
MAX_HEAD_DIM = 256


def paged_attention(cache: KVCache, step: StepMetadata, native: Native | None = None) -> Attention:
    """The native kernel where it was built and knows the cache's type and sizes, else the torch reference.

    A cache is used by the one or by the other for as long as it lives: they arrange a block's elements differently.
    """
    return CpuPagedAttention(cache, step, native) if is_supported(cache) else PagedAttention(cache, step)


def is_supported(cache: KVCache) -> bool:
    """Whether the native kernel can serve a cache: on the CPU, float32 or bfloat16, an even head_dim up to 256."""
    keys = cache.keys[0]
    head_dim = keys.shape[-1]
    return (
        keys.device.type == "cpu"
        and keys.dtype in TYPES
        and head_dim % 2 == 0
        and head_dim <= MAX_HEAD_DIM
        and library() is not None
    )


class CpuPagedAttention:
    """As PagedAttention, computed in float32 whatever the type, with weights of bfloat16 where that is the type.

    A row's answer depends on its own sequence alone, to the bit: neither on the other sequences of the step nor on the
    number of threads. What a call returns is overwritten by the next layer's.
    """

    def __init__(self, cache: KVCache, step: StepMetadata, native: Native | None = None) -> None:
        native = native or library()
        if native is None or not is_supported(cache):
            keys = cache.keys[0]
            raise ValueError(
                f"The native kernel can't serve {keys.dtype} with heads of {keys.shape[-1]} on {keys.device}, or was "
                "not built; use paged_attention(), which falls back to the torch reference."
            )
        self._native = native
        self._cache = weakref.ref(cache)
        self._keys, self._values = cache.keys, cache.values
        self._kept_alive = step
        self._out: Tensor | None = None
        _, kv_heads, block_size, head_dim = cache.keys[0].shape
        self._row = (head_dim, 1)
        self._step = _PagedStep(
            type=TYPES[cache.keys[0].dtype],
            kv_heads=kv_heads,
            head_dim=head_dim,
            block_size=block_size,
            num_sequences=step.context_lengths.shape[0],
            num_tokens=step.slots.shape[0],
            table_stride=step.block_tables.shape[1],
            slots=step.slots.data_ptr(),
            query_starts=step.query_starts.data_ptr(),
            context_lengths=step.context_lengths.data_ptr(),
            block_tables=step.block_tables.data_ptr(),
        )
        self._step_at = ctypes.addressof(self._step)

    def calls(self) -> AttentionCalls:
        """What the calls that were made read and write."""
        assert self._out is not None
        return AttentionCalls(self._cache, self._step, self._out)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
        out = self._out
        if out is None:
            out = self._begin(query)
        query_strides, key_strides, value_strides = query.stride(), key.stride(), value.stride()
        if not query_strides[1:] == key_strides[1:] == value_strides[1:] == self._row:
            return self(layer, query.contiguous(), key.contiguous(), value.contiguous(), window)
        self._native.rz_paged_attention(
            self._step_at,
            self._keys[layer].data_ptr(),
            self._values[layer].data_ptr(),
            query.data_ptr(),
            query_strides[0],
            key.data_ptr(),
            key_strides[0],
            value.data_ptr(),
            value_strides[0],
            window or 0,
            out.data_ptr(),
        )
        return out

    def _begin(self, query: Tensor) -> Tensor:
        """The step's first layer tells the number of heads."""
        if query.dtype != self._keys[0].dtype:
            raise TypeError(f"Queries of {query.dtype} can't be attended over a cache of {self._keys[0].dtype}.")
        self._step.heads = query.shape[1]
        self._out = torch.empty(query.shape, dtype=query.dtype)
        return self._out


@dataclass(frozen=True, slots=True)
class AttentionCalls:
    """Calls of a step's attention, which can be made again in another step. They keep no cache alive."""

    cache: weakref.ref[KVCache]
    step: _PagedStep
    out: Tensor

    def fit(self, attention: CpuPagedAttention) -> bool:
        """Whether its step is one of the same cache, with as many tokens."""
        cache = self.cache()
        return cache is not None and cache is attention._cache() and self.step.num_tokens == attention._step.num_tokens

    def move_to(self, attention: CpuPagedAttention) -> None:
        """Attend in its step, for as long as it lives."""
        attention._step.heads = self.step.heads
        ctypes.pointer(self.step)[0] = attention._step


class _PagedStep(ctypes.Structure):
    """`struct PagedStep` of kernels.hpp."""

    _fields_ = (
        ("type", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("block_size", c_int64),
        ("num_sequences", c_int64),
        ("num_tokens", c_int64),
        ("table_stride", c_int64),
        ("slots", c_void_p),
        ("query_starts", c_void_p),
        ("context_lengths", c_void_p),
        ("block_tables", c_void_p),
    )
