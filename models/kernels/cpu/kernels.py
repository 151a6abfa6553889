"""A decoder's operations on a CPU: native kernels wherever there is one for the type, torch's own elsewhere."""

from __future__ import annotations

from ctypes import CDLL

import torch
from torch import Tensor

from models.kernels.cpu.attention import CpuPagedAttention, paged_attention
from models.kernels.cpu.elementwise import add_rms_norm, silu_mul
from models.kernels.cpu.library import TYPES, Calls, library
from models.kernels.cpu.linear import PackedLinear
from models.kernels.cpu.memory import Arena, Workspace
from models.kernels.cpu.repetition import RepeatedLayers
from models.kernels.cpu.rotary import norm_rotate
from models.kernels.interface import PLAIN, Kernels, Layers, Lookup, Projection
from models.layers.attention import Attention, KVCache, StepMetadata


def cpu_kernels(dtype: torch.dtype, *, is_quantised: bool = False) -> Kernels | None:
    """For a decoder of this type on a CPU; None where the kernels were not built or do not know the type."""
    native = library()
    return None if native is None or dtype not in TYPES else CpuKernels(native, is_quantised=is_quantised)


class CpuKernels:
    """For inference alone. Results lie in buffers that later calls take again, and residuals are updated in place.

    Residuals and what is added to them are float32 whatever the type of the weights: the sum over the layers is not
    rounded by each of them.
    """

    def __init__(self, native: CDLL, *, is_quantised: bool) -> None:
        self._native = Calls(native)
        self._is_quantised = is_quantised
        self._arena = Arena()
        self._workspace = Workspace()
        self._repeated = RepeatedLayers(self._native, self._workspace)
        #: Whether nothing but native calls computes: then they can be made again.
        self._is_native_alone = True

    def add_norm(self, delta: Tensor | None, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        rows, size = residual.shape
        out = self._workspace.take("normed", rows, size, weight.dtype)
        add_rms_norm(self._native, delta, residual, weight, eps, out)
        return out, residual

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
        norm_rotate(
            heads.flatten(1),
            *rotation,
            query_norm,
            key_norm,
            eps,
            num_heads=queries,
            num_kv_heads=keys,
            native=self._native,
        )
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
        if weight.dtype is not torch.bfloat16 and not self._is_quantised:
            return self._float_projection(weight, bias, is_gated=is_gated, dtype=dtype)
        return PackedLinear(
            self._native,
            weight,
            bias,
            is_quantised=self._is_quantised,
            is_gated=is_gated,
            dtype=dtype or (torch.float32 if is_added else weight.dtype),
            arena=self._arena,
            workspace=self._workspace,
        )

    def _float_projection(
        self, weight: Tensor, bias: Tensor | None, *, is_gated: bool, dtype: torch.dtype | None
    ) -> Projection:
        """By torch, which multiplies float32 as fast as can be."""
        self._is_native_alone = False
        project = PLAIN.projection(weight, bias, dtype=dtype)
        if not is_gated:
            return project

        def project_gated(rows: Tensor) -> Tensor:
            gate_up = project(rows)
            out = self._workspace.take("gated", len(rows), gate_up.shape[1] // 2, gate_up.dtype)
            silu_mul(self._native, gate_up, out)
            return out

        return project_gated

    def lookup(self, weight: Tensor, projection: Projection | None) -> Lookup:
        if isinstance(projection, PackedLinear) and projection.can_look_up:
            return projection.rows
        look_up = PLAIN.lookup(weight, projection)
        return lambda token_ids: look_up(token_ids).float()

    def attention(self, cache: KVCache, step: StepMetadata) -> Attention:
        return paged_attention(cache, step, self._native)

    def run_layers(
        self, layers: Layers, residual: Tensor, rotation: tuple[Tensor, Tensor], attention: Attention
    ) -> tuple[Tensor, Tensor]:
        if self._is_native_alone and isinstance(attention, CpuPagedAttention):
            return self._repeated.run(layers, residual, rotation, attention)
        return layers(residual, rotation, attention)

    def greatest(self, logits: Tensor) -> Tensor:
        rows, entries = logits.shape
        out = torch.empty(rows, dtype=torch.int64)
        self._native.rz_argmax_finite(
            TYPES[logits.dtype], logits.data_ptr(), logits.stride(0), out.data_ptr(), rows, entries
        )
        return out
