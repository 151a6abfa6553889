"""Linear layers: split by output, which needs no communication, or by input, which ends in one all-reduce."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.sharding import Communicator


class Linear(nn.Module):
    """This rank's outputs from whole inputs; weight [outputs, inputs], as in a checkpoint."""

    def __init__(
        self, inputs: int, outputs: int, *, bias: bool, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.zeros(outputs, dtype=dtype, device=device)) if bias else None

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.weight, self.bias)


class RowLinear(Linear):
    """Whole outputs from this rank's inputs, summed over the ranks; the bias is added once, after the sum."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        communicator: Communicator,
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__(inputs, outputs, bias=bias, dtype=dtype, device=device)
        self._communicator = communicator

    def forward(self, hidden: Tensor) -> Tensor:
        if self._communicator.world_size == 1:
            return super().forward(hidden)
        outputs = self._communicator.all_reduce(functional.linear(hidden, self.weight))
        return outputs if self.bias is None else outputs + self.bias
