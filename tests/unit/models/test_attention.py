from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.layers.attention import CausalAttention, KVCache, PagedAttention, StepMetadata

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8


def heads(length: int, num_heads: int, seed: int) -> Tensor:
    return torch.randn(length, num_heads, HEAD_DIM, generator=torch.Generator().manual_seed(seed))


def plain(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """One sequence, position by position and head by head."""
    attended = torch.empty_like(query)
    for i in range(len(query)):
        first = 0 if window is None else max(0, i + 1 - window)
        for head in range(HEADS):
            kv = head // (HEADS // KV_HEADS)
            scores = key[first : i + 1, kv] @ query[i, head] / HEAD_DIM**0.5
            attended[i, head] = scores.softmax(0) @ value[first : i + 1, kv]
    return attended


def cache_of(num_blocks: int, block_size: int) -> KVCache:
    cache = KVCache(
        num_layers=1,
        num_blocks=num_blocks,
        block_size=block_size,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        dtype=torch.float32,
        device="cpu",
    )
    for tensor in (*cache.keys, *cache.values):
        tensor.fill_(float("nan"))  # the cache of a sequence that failed; it must not reach another
    return cache


@pytest.mark.parametrize("window", [None, 1, 3, 6, 50])
def test_causal_attention_is_that_of_each_sequence_alone(window: int | None) -> None:
    query, key, value = heads(18, HEADS, 0), heads(18, KV_HEADS, 1), heads(18, KV_HEADS, 2)
    attended = CausalAttention(num_sequences=3, length=6)(0, query, key, value, window)
    each = [plain(query[i : i + 6], key[i : i + 6], value[i : i + 6], window) for i in (0, 6, 12)]
    torch.testing.assert_close(attended, torch.cat(each))


def test_causal_attention_can_be_trained_through() -> None:
    query, key, value = (heads(6, n, i).requires_grad_() for i, n in enumerate((HEADS, KV_HEADS, KV_HEADS)))
    CausalAttention(2, 3)(0, query, key, value, None).sum().backward()  # type: ignore[no-untyped-call]
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in (query, key, value))


@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize("block_size", [1, 3, 4, 16])
@pytest.mark.parametrize("steps", [[[9], [13]], [[3, 3, 3], [12, 1]], [[8, 1], [1, 12]], [[1] * 9, [1] * 13]])
def test_paged_attention_is_that_of_whole_sequences(
    steps: list[list[int]], block_size: int, window: int | None
) -> None:
    """Two sequences, cut into steps; those of one step run together, and decode together where both take one token."""
    lengths = [sum(parts) for parts in steps]
    inputs = [
        (heads(n, HEADS, 10 * i), heads(n, KV_HEADS, 10 * i + 1), heads(n, KV_HEADS, 10 * i + 2))
        for i, n in enumerate(lengths)
    ]
    expected = [plain(*each, window) for each in inputs]
    cache = cache_of(64, block_size)
    blocks = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    tables = [blocks[:20].tolist(), blocks[20:40].tolist()]
    done = [0, 0]
    for step in range(max(map(len, steps))):
        running = [i for i in (0, 1) if step < len(steps[i])]
        at = {i: torch.arange(done[i], done[i] + steps[i][step]) for i in running}
        done = [done[i] + (steps[i][step] if i in running else 0) for i in (0, 1)]
        metadata = StepMetadata.of(
            [len(at[i]) for i in running],
            [done[i] for i in running],
            [tables[i] for i in running],
            block_size=block_size,
        )
        query, key, value = (torch.cat([inputs[i][part][at[i]] for i in running]) for part in range(3))
        attended = PagedAttention(cache, metadata)(0, query, key, value, window)
        torch.testing.assert_close(attended, torch.cat([expected[i][at[i]] for i in running]))


def test_a_cached_token_takes_the_memory_that_is_planned_for_it() -> None:
    cache = cache_of(5, 4)
    planned = KVCache.bytes_per_token(num_layers=1, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM, dtype=torch.float32)
    assert sum(tensor.nbytes for tensor in (*cache.keys, *cache.values)) == 5 * 4 * planned
