"""Linear layers on packed weights, in bfloat16 and int8, and the plain torch references of what they compute."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.kernels.cpu.library import TYPES, Native
from models.kernels.cpu.memory import Arena, Workspace

#: Outputs are computed in pairs of panels of 16; inputs in lines of 64 bytes.
_PAIR = 32
_LINE_BYTES = 64
#: Rows that are quantised at once: a vocabulary in float32 would be large.
_CHUNK_ROWS = 4_096


class PackedLinear:
    """x -> x weight^T + bias, [rows, inputs] -> [rows, outputs]; gated, silu(gate) * up of its two halves.

    Inputs are float32 or bfloat16 for an int8 weight, and bfloat16 for a bfloat16 one. The results lie in a buffer of
    the workspace that every layer with as many outputs shares.
    """

    def __init__(
        self,
        native: Native,
        weight: Tensor,
        bias: Tensor | None,
        *,
        is_quantised: bool,
        is_gated: bool,
        dtype: torch.dtype,
        arena: Arena,
        workspace: Workspace,
    ) -> None:
        """weight [outputs, inputs] bfloat16, or of any type if it is to be quantised. It is copied."""
        self._native = native
        self._workspace = workspace
        self._outputs, self._inputs = weight.shape
        self._columns = self._outputs // 2 if is_gated else self._outputs
        self._is_gated = is_gated
        self._dtype = dtype
        self._type = torch.int8 if is_quantised else torch.bfloat16
        line = _LINE_BYTES // self._type.itemsize
        self._padded_inputs = -(-self._inputs // line) * line
        padded_outputs = -(-self._outputs // _PAIR) * _PAIR
        self._scales: Tensor | None = None
        if is_quantised:
            weight, scales = quantise_rows(weight)
            self._scales = _panels(scales, padded_outputs, is_gated)
        self._bias = None if bias is None else _panels(bias.float(), padded_outputs, is_gated)
        # After an int8 weight come the sums of its rows, int32.
        row_bytes = self._padded_inputs * self._type.itemsize + (torch.int32.itemsize if is_quantised else 0)
        self._packed = arena.take(padded_outputs * row_bytes, torch.uint8)
        weight = weight.to(self._type).contiguous()
        native.rz_pack_linear(
            TYPES[self._type], weight.data_ptr(), self._outputs, self._inputs, is_gated, self._packed.data_ptr()
        )
        self._name = ("gated" if is_gated else "linear", self._columns, dtype)
        self._scratch_name = ("scratch", self._padded_inputs, self._type)

    @property
    def can_look_up(self) -> bool:
        """Whether `rows` gives what was packed."""
        return self._type is torch.bfloat16 and not self._is_gated

    def __call__(self, hidden: Tensor) -> Tensor:
        rows = hidden.shape[0]
        out = self._workspace.take(self._name, rows, self._columns, self._dtype)
        if hidden.stride(-1) != 1:
            hidden = hidden.contiguous()
        self._native.rz_linear(
            TYPES[self._type],
            TYPES[hidden.dtype],
            hidden.data_ptr(),
            hidden.stride(0),
            self._packed.data_ptr(),
            None if self._scales is None else self._scales.data_ptr(),
            None if self._bias is None else self._bias.data_ptr(),
            self._is_gated,
            TYPES[self._dtype],
            out.data_ptr(),
            self._columns,
            rows,
            self._outputs,
            self._inputs,
            self._scratch(rows),
        )
        return out

    def rows(self, indices: Tensor) -> Tensor:
        """[tokens] int64 -> those rows of the weight [tokens, inputs] float32."""
        out = self._workspace.take("rows", len(indices), self._inputs, torch.float32)
        self._native.rz_packed_rows(
            indices.data_ptr(), self._packed.data_ptr(), out.data_ptr(), len(indices), self._inputs
        )
        return out

    def _scratch(self, rows: int) -> int | None:
        if self._type is torch.bfloat16 and self._padded_inputs == self._inputs:
            return None
        size = rows * self._padded_inputs * self._type.itemsize + 4 * rows + _LINE_BYTES
        return self._workspace.take(self._scratch_name, 1, size, torch.uint8).data_ptr()


def quantise_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[outputs, inputs] -> int8 of the same shape, and scales [outputs] float32: weight is about int8 * scale."""
    quantised = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(len(weight), dtype=torch.float32)
    for first in range(0, len(weight), _CHUNK_ROWS):
        chunk = weight[first : first + _CHUNK_ROWS].float()
        greatest = chunk.abs().amax(dim=1)
        scales[first : first + _CHUNK_ROWS] = greatest / 127
        # A row of zeros has no scale to divide by.
        inverse = torch.where(greatest > 0, 127 / greatest, 0.0)
        quantised[first : first + _CHUNK_ROWS] = (chunk * inverse[:, None]).round().to(torch.int8)
    return quantised, scales


def linear_reference(hidden: Tensor, weight: Tensor, bias: Tensor | None, *, is_gated: bool) -> Tensor:
    """What a bfloat16 PackedLinear computes, in float32 with nothing rounded on the way."""
    outputs = functional.linear(hidden.float(), weight.float(), None if bias is None else bias.float())
    return _gate(outputs) if is_gated else outputs


def quantised_reference(hidden: Tensor, weight: Tensor, bias: Tensor | None, *, is_gated: bool) -> Tensor:
    """What an int8 PackedLinear computes: inputs quantised by row, weights by output, products summed exactly."""
    (inputs, input_scales), (weights, weight_scales) = quantise_rows(hidden), quantise_rows(weight)
    # Sums of products of int8 stay below 2^53.
    sums = functional.linear(inputs.double(), weights.double()).float()
    outputs = sums * input_scales[:, None] * weight_scales + (0 if bias is None else bias.float())
    return _gate(outputs) if is_gated else outputs


def _gate(outputs: Tensor) -> Tensor:
    gate, up = outputs.chunk(2, dim=-1)
    return functional.silu(gate) * up


def _panels(values: Tensor, padded: int, is_gated: bool) -> Tensor:
    """[outputs] in the order of the panels, padded with zeros."""
    out = torch.zeros(padded)
    if is_gated:
        half = len(values) // 2
        halves = torch.zeros(2, padded // 2)
        halves[:, :half] = values.view(2, half)
        return halves.view(2, -1, _PAIR // 2).transpose(0, 1).flatten().contiguous()
    out[: len(values)] = values
    return out
