"""The programs run under Triton's interpreter (see conftest.py), on the CPU: what they compute, not how fast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed: there is none for this system")

from models.config import ModelConfig
from models.decoder import Decoder
from models.kernels.gpu.attention import TritonPagedAttention
from models.kernels.gpu.kernels import TritonKernels
from models.kernels.interface import PLAIN
from models.layers.attention import KVCache, PagedAttention, StepMetadata

TYPES = [torch.float32, torch.bfloat16, torch.float16]
KERNELS = TritonKernels()


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 1e-4, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 2e-2}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1, 48, 100])
@pytest.mark.parametrize("has_delta", [False, True])
def test_the_norm_is_that_of_the_reference(dtype: torch.dtype, size: int, has_delta: bool) -> None:
    delta = random(3, size, seed=0, dtype=dtype) if has_delta else None
    residual, weight = random(3, size, seed=1), random(size, seed=2, dtype=dtype)
    expected, total = PLAIN.add_norm(delta, residual.clone(), weight.float(), 1e-5)
    normed, summed = KERNELS.add_norm(delta, residual, weight, 1e-5)
    assert normed.dtype is dtype
    torch.testing.assert_close(summed, total)
    torch.testing.assert_close(normed.float(), expected, **tolerance(dtype))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("head_dim", [2, 24, 64])
@pytest.mark.parametrize("has_norm", [False, True])
def test_heads_are_normed_and_rotated_as_in_the_reference(dtype: torch.dtype, head_dim: int, has_norm: bool) -> None:
    heads = random(4, 6 + 2 * 2, head_dim, seed=3, dtype=dtype)
    norms = [random(head_dim, seed=seed, dtype=dtype) if has_norm else None for seed in (4, 5)]
    angles = random(4, 1, head_dim // 2, seed=6)
    rotation = (angles.cos(), angles.sin())
    expected = PLAIN.norm_rotate(heads.clone(), *norms, 1e-5, rotation, (6, 2))
    for ours, theirs in zip(KERNELS.norm_rotate(heads, *norms, 1e-5, rotation, (6, 2)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance(dtype))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1, 70, 1030])
def test_a_gated_projection_is_that_of_the_reference(dtype: torch.dtype, size: int) -> None:
    rows, weight, bias = (random(*shape, seed=7, dtype=dtype) for shape in ((3, 8), (2 * size, 8), (2 * size,)))
    expected = PLAIN.projection(weight, bias, is_gated=True)(rows)
    torch.testing.assert_close(KERNELS.projection(weight, bias, is_gated=True)(rows), expected, **tolerance(dtype))


def test_the_greatest_is_the_first_of_equals_and_none_where_one_is_not_finite() -> None:
    logits = random(6, 2100, seed=8)
    logits[1, [20, 1900]] = 9.0
    logits[2, 2099] = float("nan")
    logits[3, 0] = float("inf")
    logits[4, 5] = -float("inf")
    found = KERNELS.greatest(logits).tolist()
    assert found == PLAIN.greatest(logits).tolist()
    assert found[1:5] == [20, -1, -1, -1]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("block_size", "head_dim"), [(4, 16), (16, 24), (5, 64)])
@pytest.mark.parametrize("window", [None, 3, 40])
@pytest.mark.parametrize(
    ("query_lengths", "context_lengths"), [([1, 1, 1], [1, 60, 7]), ([9, 1, 70], [9, 33, 90]), ([1], [300])]
)
def test_paged_attention_is_that_of_the_reference(
    dtype: torch.dtype,
    block_size: int,
    head_dim: int,
    window: int | None,
    query_lengths: list[int],
    context_lengths: list[int],
) -> None:
    num_blocks = sum(-(-length // block_size) for length in context_lengths) + 1
    order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(0)).tolist()
    tables = [[order.pop() for _ in range(-(-length // block_size))] for length in context_lengths]
    caches = []
    for _ in range(2):
        cache = KVCache(
            num_layers=1,
            num_blocks=num_blocks,
            block_size=block_size,
            num_kv_heads=2,
            head_dim=head_dim,
            dtype=dtype,
            device="cpu",
        )
        for part, tensor in enumerate((cache.keys[0], cache.values[0])):
            # What was computed before the step; everything outside of a sequence is NaN.
            tensor.fill_(float("nan"))
            for index, (table, length) in enumerate(zip(tables, context_lengths, strict=True)):
                earlier = random(length, 2, head_dim, seed=10 * index + part, dtype=dtype)
                for position in range(length - query_lengths[index]):
                    tensor[table[position // block_size], :, position % block_size] = earlier[position]
        caches.append(cache)
    step = StepMetadata.of(query_lengths, context_lengths, tables, block_size=block_size)
    query, key, value = (
        random(sum(query_lengths), heads, head_dim, seed=90 + heads, dtype=dtype) for heads in (6, 2, 2)
    )
    expected = PagedAttention(caches[0], step)(0, query, key, value, window)
    attended = TritonPagedAttention(caches[1], step)(0, query, key, value, window)
    torch.testing.assert_close(attended, expected, **tolerance(dtype))


def test_a_decoder_answers_as_with_the_reference() -> None:
    config = ModelConfig(
        family="qwen3",
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_position_embeddings=64,
        qk_norm=True,
        tie_word_embeddings=True,
    )
    step = StepMetadata.of([6, 1], [6, 1], [[0, 2], [1]], block_size=4)
    answers = []
    for kernels in (PLAIN, KERNELS):
        decoder = Decoder(config)
        decoder.initialise(std=0.2, generator=torch.Generator().manual_seed(0))
        decoder.requires_grad_(False).use(kernels)
        cache = KVCache(
            num_layers=2, num_blocks=3, block_size=4, num_kv_heads=2, head_dim=16, dtype=torch.float32, device="cpu"
        )
        token_ids, positions = torch.tensor([1, 2, 3, 4, 5, 6, 7]), torch.tensor([0, 1, 2, 3, 4, 5, 0])
        hidden = decoder(token_ids, positions, kernels.attention(cache, step))
        answers.append(decoder.logits(hidden))
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-4, atol=1e-4)
