"""What a decoder computes with: the operations that have a fast kernel, and their plain torch reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from models.layers.attention import Attention, KVCache, PagedAttention, StepMetadata
from models.layers.rotary import rotate

#: [rows, inputs] -> [rows, outputs].
Projection = Callable[[Tensor], Tensor]
#: [tokens] int64 -> [tokens, size], of a type that can hold the weight's.
Lookup = Callable[[Tensor], Tensor]


#: Residual, rotation (cosine and sine) and attention -> what is to be added to the residual at last, and the residual.
Layers = Callable[[Tensor, tuple[Tensor, Tensor], Attention], tuple[Tensor, Tensor]]


class Kernels(Protocol):
    """Operations of one device. A result may lie in memory that the next call of the same kind takes again."""

    def add_norm(self, delta: Tensor | None, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """RMS norm of residual + delta, in the type of the weight, and that sum, in the type of `residual`.

        All [rows, size]. The sum may take the place of `residual`.
        """

    def norm_rotate(
        self,
        heads: Tensor,
        query_norm: Tensor | None,
        key_norm: Tensor | None,
        eps: float,
        rotation: tuple[Tensor, Tensor],
        num_heads: tuple[int, int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, the first two normed per head (where there are weights) and rotated.

        heads [tokens, heads + 2 kv_heads, head_dim], `rotation` cosine and sine [tokens, 1, head_dim / 2] float32,
        `num_heads` those of queries and those of keys. The result may take the place of `heads`.
        """

    def projection(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        is_gated: bool = False,
        is_added: bool = False,
        dtype: torch.dtype | None = None,
    ) -> Projection:
        """What multiplies by a weight [outputs, inputs], which it may have copied into a form of its own.

        Gated, the outputs are the halves gate and up, and silu(gate) * up comes out. What is added to a residual may
        be as wide as that. `dtype` is that of the results; by default the weight's.
        """

    def lookup(self, weight: Tensor, projection: Projection | None) -> Lookup:
        """What reads rows of a weight [entries, size]; `projection` is one by the same weight, if there is one.

        What it gives becomes the residual, which may be wider than the weight.
        """

    def attention(self, cache: KVCache, step: StepMetadata) -> Attention:
        """The attention of one step."""

    def run_layers(
        self, layers: Layers, residual: Tensor, rotation: tuple[Tensor, Tensor], attention: Attention
    ) -> tuple[Tensor, Tensor]:
        """All layers of one rank, which compute with these kernels and are the same in every step: run, or repeated."""

    def greatest(self, logits: Tensor) -> Tensor:
        """[rows, entries] -> [rows] int64: the first greatest of each row; -1 where one is not finite."""


class PlainKernels:
    """Torch's own operations: differentiable, on every device, in every type."""

    def add_norm(self, delta: Tensor | None, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        if delta is not None:
            residual = residual + delta
        return rms_norm(residual, weight, eps), residual

    def norm_rotate(
        self,
        heads: Tensor,
        query_norm: Tensor | None,
        key_norm: Tensor | None,
        eps: float,
        rotation: tuple[Tensor, Tensor],
        num_heads: tuple[int, int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys = num_heads
        query, key, value = heads[:, :queries], heads[:, queries : queries + keys], heads[:, queries + keys :]
        if query_norm is not None and key_norm is not None:
            query, key = rms_norm(query, query_norm, eps), rms_norm(key, key_norm, eps)
        return rotate(query, *rotation), rotate(key, *rotation), value

    def projection(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        is_gated: bool = False,
        is_added: bool = False,
        dtype: torch.dtype | None = None,
    ) -> Projection:
        def project(rows: Tensor) -> Tensor:
            outputs = functional.linear(rows, weight, bias)
            if is_gated:
                gate, up = outputs.chunk(2, dim=-1)
                outputs = functional.silu(gate) * up
            return outputs if dtype is None else outputs.to(dtype)

        return project

    def lookup(self, weight: Tensor, projection: Projection | None) -> Lookup:
        return lambda token_ids: functional.embedding(token_ids, weight)

    def attention(self, cache: KVCache, step: StepMetadata) -> Attention:
        return PagedAttention(cache, step)

    def run_layers(
        self, layers: Layers, residual: Tensor, rotation: tuple[Tensor, Tensor], attention: Attention
    ) -> tuple[Tensor, Tensor]:
        return layers(residual, rotation, attention)

    def greatest(self, logits: Tensor) -> Tensor:
        return logits.argmax(dim=-1).where(torch.isfinite(logits).all(dim=-1), -1)


#: Without state: one serves all.
PLAIN = PlainKernels()


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Over the last dimension, in float32 whatever the type of the input, which the output keeps."""
    wide = hidden.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * wide.to(hidden.dtype)
