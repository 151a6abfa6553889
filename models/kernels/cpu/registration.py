"""The attention kernels as operators of torch, for programs that trace or compile a model.

The engine calls the functions themselves: a dispatch through torch takes several microseconds more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.kernels.cpu import attention, rotary
from models.layers.attention import KVCache, StepMetadata


@torch.library.custom_op("ryzanstein::norm_rotate", mutates_args=("qkv",))
def norm_rotate(
    qkv: Tensor,
    cosine: Tensor,
    sine: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    eps: float,
    num_heads: int,
    num_kv_heads: int,
) -> None:
    """`rotary.norm_rotate`."""
    rotary.norm_rotate(qkv, cosine, sine, query_weight, key_weight, eps, num_heads=num_heads, num_kv_heads=num_kv_heads)


@torch.library.custom_op("ryzanstein::paged_attention", mutates_args=("keys", "values"))
def paged_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    query_starts: Tensor,
    context_lengths: Tensor,
    block_tables: Tensor,
    window: int | None,
) -> Tensor:
    """`attention.paged_attention` over the keys and values of one layer's cache; the rest is a StepMetadata."""
    cache = KVCache.over([keys], [values])
    step = StepMetadata(
        slots=slots, query_starts=query_starts, context_lengths=context_lengths, block_tables=block_tables
    )
    return attention.paged_attention(cache, step)(0, query, key, value, window)


@norm_rotate.register_fake
def _(
    qkv: Tensor,
    cosine: Tensor,
    sine: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    eps: float,
    num_heads: int,
    num_kv_heads: int,
) -> None:
    return None


@paged_attention.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    query_starts: Tensor,
    context_lengths: Tensor,
    block_tables: Tensor,
    window: int | None,
) -> Tensor:
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)
