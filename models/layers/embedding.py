"""Token embedding and the head that scores the vocabulary, both split by vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.kernels.interface import PLAIN, Kernels, Lookup, Projection
from models.sharding import Communicator, Sharding


class Embedding(nn.Module):
    """[tokens] -> [tokens, hidden]. Each rank looks up its own entries; the sum over ranks has them all."""

    def __init__(
        self,
        hidden_size: int,
        sharding: Sharding,
        communicator: Communicator,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__()
        weight = torch.zeros(sharding.num_vocabulary_rows, hidden_size, dtype=dtype, device=device)
        self.weight: nn.Parameter | None = nn.Parameter(weight)
        self._lookup: Lookup | None = None
        self._vocabulary = sharding.vocabulary
        self._communicator = communicator

    def use(self, kernels: Kernels, tied: Projection | None) -> None:
        """Compute with these from now on; `tied` is the head's projection where embedding and head are one matrix."""
        assert self.weight is not None
        self._lookup = kernels.lookup(self.weight.data, tied)
        self.weight = None

    def forward(self, token_ids: Tensor) -> Tensor:
        if self._communicator.world_size == 1:
            return self._look_up(token_ids)
        rows = token_ids - self._vocabulary.start
        elsewhere = (rows < 0) | (rows >= len(self._vocabulary))
        embedded = self._look_up(rows.masked_fill(elsewhere, 0))
        return self._communicator.all_reduce(embedded.masked_fill_(elsewhere[:, None], 0))

    def _look_up(self, token_ids: Tensor) -> Tensor:
        if self._lookup is not None:
            return self._lookup(token_ids)
        assert self.weight is not None
        return PLAIN.lookup(self.weight, None)(token_ids)


class Head(nn.Module):
    """[rows, hidden] -> logits [rows, vocab_size] float32, whole on rank 0 and [0, vocab_size] on the others."""

    def __init__(self, weight: nn.Parameter, vocab_size: int, communicator: Communicator) -> None:
        super().__init__()
        self.weight: nn.Parameter | None = weight
        self._projection: Projection | None = None
        self._vocab_size = vocab_size
        self._communicator = communicator

    def use(self, kernels: Kernels) -> Projection:
        """Compute with these from now on; returns what they made of the weight."""
        assert self.weight is not None
        self._projection = kernels.projection(self.weight.data, None, dtype=torch.float32)
        self.weight = None
        return self._projection

    def forward(self, hidden: Tensor) -> Tensor:
        parts = self._communicator.gather(self._project(hidden))
        if not parts:
            return hidden.new_empty(0, self._vocab_size, dtype=torch.float32)
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return whole[:, : self._vocab_size]

    def _project(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] -> this rank's entries [rows, num_vocabulary_rows] float32."""
        if self._projection is not None:
            return self._projection(hidden)
        assert self.weight is not None
        return PLAIN.projection(self.weight, None, dtype=torch.float32)(hidden)
