"""Norms, rotations, gates and greatest logits on the device; the torch references are those of `PlainKernels`."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from models.kernels.gpu.programs import rows as programs

#: Columns of one tile of a gate.
_GATE_WIDTH = 1024
#: A row of logits is searched by so many programs, since one alone would read a vocabulary too slowly.
_PARTS = 16
_SEARCH_WIDTH = 1024


def add_norm(delta: Tensor | None, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """residual [rows, size] += delta, in place -> its norm, in the type of the weight."""
    num_rows, size = residual.shape
    out = torch.empty((num_rows, size), dtype=weight.dtype, device=residual.device)
    width = triton.next_power_of_2(size)
    added = residual if delta is None else _dense(delta)
    if num_rows:
        programs.add_norm[(num_rows,)](
            added,
            residual,
            weight,
            out,
            added.stride(0),
            residual.stride(0),
            eps,
            SIZE=size,
            WIDTH=width,
            HAS_DELTA=delta is not None,
            num_warps=min(16, max(1, width // 256)),
        )
    return out


def norm_rotate(
    heads: Tensor,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    eps: float,
    rotation: tuple[Tensor, Tensor],
    num_heads: tuple[int, int],
) -> None:
    """heads [tokens, heads + 2 kv_heads, head_dim]: those of query and key normed and rotated, in place."""
    num_tokens, _, head_dim = heads.shape
    has_norm = query_norm is not None and key_norm is not None
    programs.norm_rotate[(num_tokens, sum(num_heads))](
        heads,
        query_norm if has_norm else heads,
        key_norm if has_norm else heads,
        rotation[0],
        rotation[1],
        heads.stride(0),
        eps,
        NUM_QUERIES=num_heads[0],
        HALF=head_dim // 2,
        WIDTH=triton.next_power_of_2(head_dim // 2),
        HAS_NORM=has_norm,
        num_warps=1,
    )


def silu_mul(gate_up: Tensor) -> Tensor:
    """[rows, 2 * size], the halves gate and up -> silu(gate) * up [rows, size]."""
    gate_up = _dense(gate_up)
    num_rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((num_rows, size), dtype=gate_up.dtype, device=gate_up.device)
    if num_rows:
        programs.silu_mul[(num_rows, triton.cdiv(size, _GATE_WIDTH))](
            gate_up, out, gate_up.stride(0), SIZE=size, WIDTH=_GATE_WIDTH, num_warps=4
        )
    return out


def greatest(logits: Tensor) -> Tensor:
    """[rows, entries] -> [rows] int64: the first greatest of each row; -1 where one is not finite."""
    logits = _dense(logits)
    num_rows, entries = logits.shape
    out = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows:
        best = torch.empty((num_rows, _PARTS), dtype=torch.float32, device=logits.device)
        index, is_finite = (torch.empty_like(best, dtype=torch.int32) for _ in range(2))
        programs.greatest_of_parts[(num_rows, _PARTS)](
            logits, best, index, is_finite, logits.stride(0), entries, PARTS=_PARTS, WIDTH=_SEARCH_WIDTH, num_warps=4
        )
        programs.greatest_of_rows[(num_rows,)](best, index, is_finite, out, PARTS=_PARTS, num_warps=1)
    return out


def _dense(rows: Tensor) -> Tensor:
    """Rows may lie apart; the elements of one must not."""
    return rows if rows.stride(-1) == 1 else rows.contiguous()
