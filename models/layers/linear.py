"""Linear layers: split by output, which needs no communication, or by input, which ends in one all-reduce."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.kernels.interface import PLAIN, Kernels, Projection
from models.sharding import Communicator


class Linear(nn.Module):
    """This rank's outputs from whole inputs; weight [outputs, inputs], as in a checkpoint.

    Gated, the outputs are the halves gate and up, and silu(gate) * up comes out. What is added to a residual may come
    out in its type.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool,
        is_gated: bool = False,
        is_added: bool = False,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__()
        self.weight: nn.Parameter | None = nn.Parameter(torch.empty(outputs, inputs, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.zeros(outputs, dtype=dtype, device=device)) if bias else None
        self._is_gated = is_gated
        self._is_added = is_added
        self._projection: Projection | None = None

    def use(self, kernels: Kernels) -> None:
        """Compute with these from now on. The weight is theirs then, in whatever form they keep it. Idempotent."""
        if self.weight is None:
            return
        self._projection = kernels.projection(
            self.weight.data, self._own_bias(), is_gated=self._is_gated, is_added=self._is_added
        )
        self.weight = None

    def forward(self, hidden: Tensor) -> Tensor:
        if self._projection is not None:
            return self._projection(hidden)
        assert self.weight is not None
        return PLAIN.projection(self.weight, self._own_bias(), is_gated=self._is_gated)(hidden)

    def _own_bias(self) -> Tensor | None:
        """What is added before the ranks communicate."""
        return self.bias


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
        super().__init__(inputs, outputs, bias=bias, is_added=True, dtype=dtype, device=device)
        self._communicator = communicator

    def forward(self, hidden: Tensor) -> Tensor:
        outputs = super().forward(hidden)
        if self._communicator.world_size == 1:
            return outputs
        outputs = self._communicator.all_reduce(outputs)
        return outputs if self.bias is None else outputs + self.bias

    def _own_bias(self) -> Tensor | None:
        return self.bias if self._communicator.world_size == 1 else None
