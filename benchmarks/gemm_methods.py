"""The ways that this machine can multiply by a bfloat16 or int8 weight that stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.kernels.cpu.kernels import cpu_kernels

#: What multiplies [rows, inputs] by one weight.
Multiply = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Method:
    name: str
    #: From a weight [outputs, inputs] in bfloat16 and the number of rows that it will be used with.
    prepare: Callable[[Tensor, int], Multiply]
    #: Whether preparing depends on the rows.
    depends_on_rows: bool = False
    #: What it multiplies, from inputs in bfloat16.
    convert: Callable[[Tensor], Tensor] = lambda inputs: inputs


def methods(quantize: str | None) -> list[Method]:
    """Those that compute in bfloat16; or in int8, of which oneDNN's is measured without quantising its inputs."""
    kernels = cpu_kernels(torch.bfloat16, is_quantised=quantize == "int8")
    ours = [] if kernels is None else [Method("ours", lambda weight, rows: kernels.projection(weight, None))]
    if quantize == "int8":
        return [*ours, Method("oneDNN u8s8", _prepare_u8s8, convert=_to_u8)]
    torch_alone = Method("F.linear", lambda weight, rows: lambda inputs: functional.linear(inputs, weight))
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # then it refuses to pack
        return [*ours, torch_alone]
    return [*ours, torch_alone, Method("oneDNN prepacked", _prepare_packed, depends_on_rows=True)]


def _prepare_packed(weight: Tensor, rows: int) -> Multiply:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    linear = torch.ops.mkldnn._linear_pointwise

    def multiply(inputs: Tensor) -> Tensor:
        outputs: Tensor = linear(inputs, packed, None, "none", [], "")
        return outputs

    return multiply


def _to_u8(inputs: Tensor) -> Tensor:
    return (inputs.float() * 32 + 128).clamp(0, 255).to(torch.uint8)


def _prepare_u8s8(weight: Tensor, rows: int) -> Multiply:
    scales = weight.float().abs().amax(dim=1) / 127
    quantized = (weight.float() / scales[:, None]).round().to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(quantized, None)
    zeros = torch.zeros(weight.shape[0], dtype=torch.int64)
    linear = torch.ops.onednn.qlinear_pointwise

    def multiply(inputs: Tensor) -> Tensor:
        outputs: Tensor = linear(
            inputs, 1 / 32, 128, packed, scales, zeros, None, 1.0, 0, torch.bfloat16, "none", [], ""
        )
        return outputs

    return multiply
