"""The likeliest tokens, found by ranks that each have a part of the vocabulary."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from models.config import ModelConfig
from models.kernels.interface import PLAIN
from models.layers.embedding import Head
from models.sharding import Sharding


class ThreadCommunicator:
    """A world whose ranks are threads."""

    def __init__(self, rank: int, world_size: int, given: list[Tensor | None], meeting: threading.Barrier) -> None:
        self.rank, self.world_size = rank, world_size
        self._given, self._meeting = given, meeting

    def all_reduce(self, tensor: Tensor) -> Tensor:
        raise NotImplementedError

    def broadcast(self, tensor: Tensor) -> Tensor:
        raise NotImplementedError

    def gather(self, tensor: Tensor) -> list[Tensor]:
        self._given[self.rank] = tensor
        self.barrier()
        return [one for one in self._given if one is not None] if self.rank == 0 else []

    def barrier(self) -> None:
        self._meeting.wait(60)


def greatest_over_ranks(weight: Tensor, hidden: Tensor, world_size: int) -> Tensor:
    """`weight` is the whole head, [vocab_size, hidden]."""
    config = ModelConfig(
        family="llama",
        vocab_size=len(weight),
        hidden_size=weight.shape[1],
        intermediate_size=8,
        num_layers=1,
        num_heads=8,
        num_kv_heads=8,
        head_dim=8,
        max_position_embeddings=8,
    )
    given_by: list[Tensor | None] = [None] * world_size
    meeting = threading.Barrier(world_size)

    def run(rank: int) -> Tensor:
        shard = Sharding.of(config, rank, world_size)
        mine = torch.zeros(shard.num_vocabulary_rows, weight.shape[1])
        mine[: len(shard.vocabulary)] = weight[shard.vocabulary.start : shard.vocabulary.stop]
        head = Head(nn.Parameter(mine), len(weight), ThreadCommunicator(rank, world_size, given_by, meeting))
        with torch.no_grad():
            return head.greatest(hidden, PLAIN, shard.vocabulary)

    with ThreadPoolExecutor(world_size) as pool:
        found = list(pool.map(run, range(world_size)))
    assert all(len(one) == 0 for one in found[1:])
    return found[0]


@given(
    vocab_size=st.integers(1, 40),
    num_rows=st.integers(1, 5),
    world_size=st.sampled_from([1, 2, 4, 8]),
    seed=st.integers(0, 2**31),
)
def test_the_first_greatest_is_that_of_the_whole(vocab_size: int, num_rows: int, world_size: int, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    # Few values, so that there are equals; below zero, which is what padding would be.
    weight = torch.randint(-3, 0, (vocab_size, 4), generator=chance).float()
    hidden = torch.randint(0, 2, (num_rows, 4), generator=chance).float()
    assert greatest_over_ranks(weight, hidden, world_size).tolist() == PLAIN.greatest(hidden @ weight.T).tolist()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("entry", [0, 9, 18])
def test_a_row_that_is_not_finite_on_any_rank_has_none(value: float, entry: int) -> None:
    weight = torch.arange(19.0)[:, None].repeat(1, 2)
    weight[entry, 0] = value
    hidden = torch.tensor([[1.0, 1.0], [1.0, 2.0]])
    assert greatest_over_ranks(weight, hidden, 4).tolist() == [-1, -1]
