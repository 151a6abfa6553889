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

    def greatest(self, hidden: Tensor, kernels: Kernels, entries: range) -> Tensor:
        """[rows, hidden] -> as `Kernels.greatest` of the whole logits on rank 0, [0] on the others.

        `entries` are those of the vocabulary that this rank has. Logits stay where they are computed: the ranks
        exchange one number and its entry for each row.
        """
        mine = self._project(hidden)[:, : len(entries)].contiguous()
        if len(entries) == 0:
            first, values = (
                torch.zeros(len(mine), dtype=torch.int64, device=mine.device),
                mine.new_full((len(mine),), -torch.inf),
            )
        else:
            first = kernels.greatest(mine)
            values = mine.gather(1, first.clamp(min=0).unsqueeze(1)).squeeze(1)
        # Doubles hold both: logits are floats, and entries are far below 2^53.
        found = torch.stack([values.double(), torch.where(first < 0, -1, first + entries.start).double()])
        parts = self._communicator.gather(found)
        if not parts:
            return first[:0]
        of_ranks = torch.stack(parts)  # [ranks, 2, rows]
        values, ids = of_ranks[:, 0], of_ranks[:, 1].long()
        # The first of equals is that of the lowest rank, whose entries come first.
        whole = ids.gather(0, values.nan_to_num(-torch.inf).argmax(dim=0, keepdim=True)).squeeze(0)
        return torch.where((ids < 0).any(dim=0), -1, whole)

    def _project(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] -> this rank's entries [rows, num_vocabulary_rows] float32."""
        if self._projection is not None:
            return self._projection(hidden)
        assert self.weight is not None
        return PLAIN.projection(self.weight, None, dtype=torch.float32)(hidden)
