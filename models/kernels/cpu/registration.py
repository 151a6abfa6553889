"""The kernels as operators of torch, for programs that trace or compile a model.

The engine calls the functions themselves: a dispatch through torch takes several microseconds more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.kernels.cpu import attention, elementwise, rotary
from models.kernels.cpu.library import library
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


@torch.library.custom_op("ryzanstein::add_rms_norm", mutates_args=("residual",))
def add_rms_norm(delta: Tensor | None, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`elementwise.add_rms_norm`; returns the norm."""
    native = library()
    if native is None:
        normed, total = elementwise.add_rms_norm_reference(delta, residual, weight, eps)
        residual.copy_(total)
        return normed
    out = torch.empty(residual.shape, dtype=weight.dtype)
    elementwise.add_rms_norm(native, delta, residual, weight, eps, out)
    return out


@torch.library.custom_op("ryzanstein::silu_mul", mutates_args=())
def silu_mul(gate_up: Tensor) -> Tensor:
    """`elementwise.silu_mul`; returns what it writes."""
    native = library()
    if native is None:
        return elementwise.silu_mul_reference(gate_up)
    out = torch.empty(len(gate_up), gate_up.shape[1] // 2, dtype=gate_up.dtype)
    elementwise.silu_mul(native, gate_up, out)
    return out


@add_rms_norm.register_fake
def _(delta: Tensor | None, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.empty(residual.shape, dtype=weight.dtype, device=residual.device)


@silu_mul.register_fake
def _(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)


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
