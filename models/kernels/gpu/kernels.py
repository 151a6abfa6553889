"""A decoder's operations on a CUDA device: Triton for all but the multiplications, which stay cuBLAS's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.kernels.gpu import rows as row_kernels
from models.kernels.gpu.attention import TritonPagedAttention
from models.kernels.interface import PLAIN, Layers, Lookup, Projection
from models.layers.attention import Attention, KVCache, StepMetadata


class TritonKernels:
    """For inference alone. Nothing here waits for the device, so that a step can be recorded as a CUDA graph.

    Residuals are float32 whatever the type of the weights, and are updated in place; what is added to them comes in
    the type of the weights, as cuBLAS gives it. Logits lie in a buffer that the next ones take again.
    """

    def add_norm(self, delta: Tensor | None, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return row_kernels.add_norm(delta, residual, weight, eps), residual

    def norm_rotate(
        self,
        heads: Tensor,
        query_norm: Tensor | None,
        key_norm: Tensor | None,
        eps: float,
        rotation: tuple[Tensor, Tensor],
        num_heads: tuple[int, int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        row_kernels.norm_rotate(heads, query_norm, key_norm, eps, rotation, num_heads)
        queries, keys = num_heads
        return heads[:, :queries], heads[:, queries : queries + keys], heads[:, queries + keys :]

    def projection(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        is_gated: bool = False,
        is_added: bool = False,
        dtype: torch.dtype | None = None,
    ) -> Projection:
        if is_gated:
            return lambda rows: row_kernels.silu_mul(functional.linear(rows, weight, bias))
        return PLAIN.projection(weight, bias) if dtype is None else _ConvertedProjection(weight, bias, dtype)

    def lookup(self, weight: Tensor, projection: Projection | None) -> Lookup:
        return lambda token_ids: functional.embedding(token_ids, weight).float()

    def attention(self, cache: KVCache, step: StepMetadata) -> Attention:
        return TritonPagedAttention(cache, step)

    def run_layers(
        self, layers: Layers, residual: Tensor, rotation: tuple[Tensor, Tensor], attention: Attention
    ) -> tuple[Tensor, Tensor]:
        return layers(residual, rotation, attention)

    def greatest(self, logits: Tensor) -> Tensor:
        return row_kernels.greatest(logits)


class _ConvertedProjection:
    """Logits: as large as all else of a step together, so that recorded steps of every size share one buffer."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self._weight = weight
        self._bias = bias
        self._results = torch.empty((0, weight.shape[0]), dtype=dtype, device=weight.device)

    def __call__(self, rows: Tensor) -> Tensor:
        if len(rows) > len(self._results):
            self._results = self._results.new_empty((len(rows), self._weight.shape[0]))
        return self._results[: len(rows)].copy_(functional.linear(rows, self._weight, self._bias))
