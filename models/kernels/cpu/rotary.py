"""Norm and rotation of the heads of query and key, in place."""

from __future__ import annotations

import torch
from torch import Tensor

from models.kernels.cpu.library import TYPES, Native, library


def norm_rotate(
    qkv: Tensor,
    cosine: Tensor,
    sine: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    eps: float,
    *,
    num_heads: int,
    num_kv_heads: int,
    native: Native | None = None,
) -> None:
    """Norm each head of query and key by its root mean square, then rotate it; in place, and value stays.

    qkv [tokens, (heads + 2 kv_heads) * head_dim], contiguous; cosine and sine [tokens, head_dim / 2] float32, as
    `Rotary` gives them; the weights [head_dim] of qkv's type, or None for no norm. Computed in float32, rounded once.
    """
    native = native or library()
    if native is None or qkv.dtype not in TYPES or qkv.device.type != "cpu":
        norm_rotate_reference(
            qkv, cosine, sine, query_weight, key_weight, eps, num_heads=num_heads, num_kv_heads=num_kv_heads
        )
        return
    tokens, width = qkv.shape
    native.rz_norm_rotate(
        TYPES[qkv.dtype],
        qkv.data_ptr(),
        None if query_weight is None else query_weight.data_ptr(),
        None if key_weight is None else key_weight.data_ptr(),
        eps,
        cosine.data_ptr(),
        sine.data_ptr(),
        tokens,
        num_heads,
        num_kv_heads,
        width // (num_heads + 2 * num_kv_heads),
    )


def norm_rotate_reference(
    qkv: Tensor,
    cosine: Tensor,
    sine: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    eps: float,
    *,
    num_heads: int,
    num_kv_heads: int,
) -> None:
    """The same in torch."""
    heads = qkv.view(len(qkv), num_heads + 2 * num_kv_heads, -1)
    cosine, sine = cosine.flatten(1)[:, None], sine.flatten(1)[:, None]
    query, key = heads[:, :num_heads], heads[:, num_heads : num_heads + num_kv_heads]
    for part, weight in ((query, query_weight), (key, key_weight)):
        wide = part.float()
        if weight is not None:
            wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()
        first, second = wide.chunk(2, dim=-1)
        part.copy_(torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1))
