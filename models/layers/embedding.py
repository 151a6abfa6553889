"""Token embedding and the head that scores the vocabulary, both split by vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

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
        self.weight = nn.Parameter(torch.zeros(sharding.num_vocabulary_rows, hidden_size, dtype=dtype, device=device))
        self._vocabulary = sharding.vocabulary
        self._communicator = communicator

    def forward(self, token_ids: Tensor) -> Tensor:
        if self._communicator.world_size == 1:
            return functional.embedding(token_ids, self.weight)
        rows = token_ids - self._vocabulary.start
        elsewhere = (rows < 0) | (rows >= len(self._vocabulary))
        embedded = functional.embedding(rows.masked_fill(elsewhere, 0), self.weight)
        return self._communicator.all_reduce(embedded.masked_fill_(elsewhere[:, None], 0))


class Head(nn.Module):
    """[rows, hidden] -> logits [rows, vocab_size] float32, whole on rank 0 and [0, vocab_size] on the others."""

    def __init__(self, weight: nn.Parameter, vocab_size: int, communicator: Communicator) -> None:
        super().__init__()
        self.weight = weight
        self._vocab_size = vocab_size
        self._communicator = communicator

    def forward(self, hidden: Tensor) -> Tensor:
        parts = self._communicator.gather(functional.linear(hidden, self.weight))
        if not parts:
            return hidden.new_empty(0, self._vocab_size, dtype=torch.float32)
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return whole[:, : self._vocab_size].float()
