"""Norm and activation in one pass over memory each, and the plain torch references of them."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from models.kernels.cpu.library import TYPES, Native
from models.kernels.interface import rms_norm


def add_rms_norm(
    native: Native, delta: Tensor | None, residual: Tensor, weight: Tensor, eps: float, out: Tensor
) -> None:
    """Add delta to residual, in place, and write the RMS norm of that to `out`; all [rows, size], contiguous.

    `out` is of the type of the weight, float32 or bfloat16; delta and residual are both of that type, or both float32.
    """
    rows, size = residual.shape
    native.rz_add_rms_norm(
        TYPES[weight.dtype],
        TYPES[residual.dtype],
        None if delta is None else delta.data_ptr(),
        residual.data_ptr(),
        weight.data_ptr(),
        eps,
        out.data_ptr(),
        rows,
        size,
    )


def add_rms_norm_reference(delta: Tensor | None, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm, and the sum, in torch."""
    total = residual if delta is None else residual + delta
    return rms_norm(total.float(), weight.float(), eps).to(weight.dtype), total


def silu_mul(native: Native, gate_up: Tensor, out: Tensor) -> None:
    """Write silu(gate) * up to `out` [rows, size]; gate_up [rows, 2 * size], gate before up.

    Both contiguous, and of one type: float32 or bfloat16.
    """
    rows, size = out.shape
    native.rz_silu_mul(TYPES[gate_up.dtype], gate_up.data_ptr(), out.data_ptr(), rows, size)


def silu_mul_reference(gate_up: Tensor) -> Tensor:
    """The same in torch, computed in float32."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (functional.silu(gate) * up).to(gate_up.dtype)
