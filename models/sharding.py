"""What is split over ranks, and how.

Query, key and value heads and the two halves of gate/up are split by output, the attention's output and the
feed-forward's down projection by input; one all-reduce follows each of the latter. Embedding and head are split by
vocabulary. Norms, and the biases that follow an all-reduce, are whole on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from models.errors import UnsupportedModel

if TYPE_CHECKING:
    from torch import Tensor

    from models.config import ModelConfig


class Communicator(Protocol):
    """Collectives between the ranks of one group. All ranks call the same ones in the same order."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum over all ranks, in place; returns the same tensor."""

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The ranks' tensors (of one shape), by rank, on rank 0; an empty list on the others."""

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Copy rank 0's tensor into those of the others, in place; returns the same tensor."""

    def barrier(self) -> None:
        """Return when every rank is here."""


class LocalCommunicator:
    """A world of one rank."""

    rank = 0
    world_size = 1

    def all_reduce(self, tensor: Tensor) -> Tensor:
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        return [tensor]

    def broadcast(self, tensor: Tensor) -> Tensor:
        return tensor

    def barrier(self) -> None:
        return


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """The part of a decoder that one rank holds, in indices of the whole."""

    rank: int
    world_size: int
    heads: range
    #: Where there are fewer KV heads than ranks, each is held by `world_size / num_kv_heads` neighbouring ranks.
    kv_heads: range
    intermediate: range
    #: The real entries; the last ranks may hold fewer than `num_vocabulary_rows`, or none.
    vocabulary: range
    #: Rows of this rank's embedding and head, the same on all ranks; those past `vocabulary` are zeros.
    num_vocabulary_rows: int

    @classmethod
    def of(cls, config: ModelConfig, rank: int = 0, world_size: int = 1) -> Sharding:
        """The part of `rank`. Raises UnsupportedModel where the model can't be split over so many ranks."""
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be from 0 to {world_size - 1}, not {rank}")
        _require_multiple("num_attention_heads", config.num_heads, world_size)
        _require_multiple("intermediate_size", config.intermediate_size, world_size)
        rows = -(-config.vocab_size // world_size)
        return cls(
            rank=rank,
            world_size=world_size,
            heads=_part(config.num_heads, rank, world_size),
            kv_heads=_kv_heads(config.num_kv_heads, rank, world_size),
            intermediate=_part(config.intermediate_size, rank, world_size),
            vocabulary=range(min(rank * rows, config.vocab_size), min((rank + 1) * rows, config.vocab_size)),
            num_vocabulary_rows=rows,
        )


def _part(total: int, rank: int, world_size: int) -> range:
    size = total // world_size
    return range(rank * size, (rank + 1) * size)


def _kv_heads(num_kv_heads: int, rank: int, world_size: int) -> range:
    if num_kv_heads >= world_size:
        _require_multiple("num_key_value_heads", num_kv_heads, world_size)
        return _part(num_kv_heads, rank, world_size)
    if world_size % num_kv_heads:
        raise UnsupportedModel(
            f"config.json: num_key_value_heads is {num_kv_heads}, which is neither a multiple nor a divisor of "
            f"{world_size} ranks; choose another tensor parallelism."
        )
    head = rank * num_kv_heads // world_size
    return range(head, head + 1)


def _require_multiple(name: str, value: int, world_size: int) -> None:
    if value % world_size:
        raise UnsupportedModel(
            f"config.json: {name} is {value}, which can't be split evenly over {world_size} ranks; "
            "choose a tensor parallelism that divides it."
        )
