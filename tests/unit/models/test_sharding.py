from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.config import ModelConfig
from models.errors import UnsupportedModel
from models.sharding import Sharding


def config(**changes: int) -> ModelConfig:
    sizes = {
        "vocab_size": 101,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_layers": 1,
        "num_heads": 8,
        "num_kv_heads": 4,
        "head_dim": 8,
        "max_position_embeddings": 64,
    }
    return ModelConfig(family="llama", **(sizes | changes))  # type: ignore[arg-type]


def parts(model: ModelConfig, world_size: int) -> list[Sharding]:
    return [Sharding.of(model, rank, world_size) for rank in range(world_size)]


@given(
    vocab_size=st.integers(1, 300),
    world_size=st.sampled_from([1, 2, 4, 8]),
    num_kv_heads=st.sampled_from([1, 2, 4, 8]),
)
def test_every_part_of_the_model_is_on_the_ranks_that_need_it(
    vocab_size: int, world_size: int, num_kv_heads: int
) -> None:
    model = config(vocab_size=vocab_size, num_kv_heads=num_kv_heads)
    shards = parts(model, world_size)
    for total, name in ((8, "heads"), (96, "intermediate"), (vocab_size, "vocabulary")):
        held = [index for shard in shards for index in getattr(shard, name)]
        assert held == list(range(total))
    for shard in shards:
        assert len(shard.vocabulary) <= shard.num_vocabulary_rows
        # The heads of a rank read the KV heads of that rank, in order.
        group = model.num_heads // num_kv_heads
        local_group = len(shard.heads) // len(shard.kv_heads)
        assert [head // group for head in shard.heads] == [
            shard.kv_heads[i // local_group] for i in range(len(shard.heads))
        ]


def test_kv_heads_are_replicated_where_there_are_fewer_than_ranks() -> None:
    assert [shard.kv_heads for shard in parts(config(num_kv_heads=2), 4)] == [
        range(1),
        range(1),
        range(1, 2),
        range(1, 2),
    ]


@pytest.mark.parametrize(
    ("changes", "world_size", "message"),
    [
        ({"num_heads": 6, "num_kv_heads": 2}, 4, "num_attention_heads is 6, which can't be split evenly over 4 ranks"),
        ({"intermediate_size": 98}, 4, "intermediate_size is 98, which can't be split evenly over 4 ranks"),
        ({"num_heads": 12, "num_kv_heads": 6}, 4, "num_key_value_heads is 6, which can't be split evenly over 4"),
        ({"num_heads": 12, "num_kv_heads": 3}, 4, "num_key_value_heads is 3, which is neither a multiple nor a"),
    ],
)
def test_a_model_that_does_not_divide_is_refused_by_the_name_of_its_field(
    changes: dict[str, int], world_size: int, message: str
) -> None:
    with pytest.raises(UnsupportedModel) as refusal:
        Sharding.of(config(**changes), 0, world_size)
    assert message in str(refusal.value)


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_outside_its_world_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match="rank must be from 0 to 1"):
        Sharding.of(config(), rank, 2)
