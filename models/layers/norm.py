"""Root mean square norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.kernels.interface import PLAIN, Kernels


class RMSNorm(nn.Module):
    """Of what was there and what is added to it."""

    def __init__(self, size: int, eps: float, *, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size, dtype=dtype, device=device))
        self.eps = eps
        self._kernels: Kernels = PLAIN

    def use(self, kernels: Kernels) -> None:
        """Compute with these from now on."""
        self._kernels = kernels

    def forward(self, delta: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor]:
        """[rows, size] both -> the norm of their sum, and the sum, which may take the place of `residual`."""
        return self._kernels.add_norm(delta, residual, self.weight, self.eps)
