"""Triton's attention against a plain one in float64, in steps through one cache; see `triton_device.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from triton_device import DEVICE, assert_close

pytest.importorskip("triton", reason="Triton is not installed: there is none for this system")

from models.kernels.gpu.attention import LEAST_SEGMENT, SEGMENTS, TritonPagedAttention
from models.layers.attention import KVCache, StepMetadata


@dataclass(frozen=True)
class Shape:
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    block_size: int = 16
    dtype: torch.dtype = torch.float32


class Sequences:
    """Sequences whose queries, keys and values are known as a whole, attended to in steps through a scattered cache."""

    def __init__(self, shape: Shape, lengths: Sequence[int]) -> None:
        generator = torch.Generator().manual_seed(0)
        width = shape.heads + 2 * shape.kv_heads
        self.shape = shape
        self.heads = [torch.randn(n, width, shape.head_dim, generator=generator).to(shape.dtype) for n in lengths]
        widths = [-(-n // shape.block_size) for n in lengths]
        num_blocks = sum(widths) + 1
        self.cache = KVCache(
            num_layers=2,
            num_blocks=num_blocks,
            block_size=shape.block_size,
            num_kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            dtype=shape.dtype,
            device=DEVICE,
        )
        for cached in (*self.cache.keys, *self.cache.values):
            cached.fill_(float("nan"))  # nothing may be read that was not written
        order = torch.randperm(num_blocks, generator=generator)
        self.tables = [table.tolist() for table in torch.split(order[: sum(widths)], widths)]
        self._done = [0] * len(lengths)

    def split(self, heads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = self.shape
        query, key, value = heads.split((shape.heads, shape.kv_heads, shape.kv_heads), dim=1)
        return query, key, value

    def step(self, parts: dict[int, int], window: int | None = None) -> dict[int, Tensor]:
        """The next so many tokens of these sequences together -> what each of them attended to."""
        spans = {i: slice(self._done[i], self._done[i] + n) for i, n in parts.items()}
        for i, span in spans.items():
            self._done[i] = span.stop
        step = StepMetadata.of(
            list(parts.values()),
            [span.stop for span in spans.values()],
            [self.tables[i] for i in parts],
            block_size=self.shape.block_size,
            device=DEVICE,
        )
        flat = torch.cat([self.heads[i][span] for i, span in spans.items()]).to(DEVICE)
        attended = TritonPagedAttention(self.cache, step)(1, *self.split(flat), window)
        return dict(zip(parts, attended.split(list(parts.values())), strict=True))

    def expected(self, index: int, window: int | None = None) -> Tensor:
        """In float64, without a cache."""
        query, key, value = (each.double() for each in self.split(self.heads[index]))
        group = self.shape.heads // self.shape.kv_heads
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", query, key) / self.shape.head_dim**0.5
        distance = torch.arange(len(query))[:, None] - torch.arange(len(query))
        unseen = (distance < 0) if window is None else (distance < 0) | (distance >= window)
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(unseen, float("-inf")).softmax(-1), value)


# Interpreted, a program takes milliseconds: each shape and each type is met, not every pair of them.
@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ({"heads": 2, "kv_heads": 2, "head_dim": 64, "dtype": torch.bfloat16}, None),
        ({"kv_heads": 1, "head_dim": 128, "block_size": 32, "dtype": torch.bfloat16}, 20),
        ({"heads": 6, "kv_heads": 2, "head_dim": 80, "block_size": 48, "dtype": torch.float16}, None),
        ({"kv_heads": 1, "head_dim": 64, "dtype": torch.float16}, 1),
        ({"heads": 20, "kv_heads": 1, "head_dim": 256}, None),
        ({"heads": 2, "kv_heads": 2, "head_dim": 96, "block_size": 7}, 20),
        ({"heads": 3, "kv_heads": 1, "head_dim": 10}, 1),
        ({"heads": 2, "kv_heads": 1, "head_dim": 2, "block_size": 1}, 300),
    ],
)
def test_steps_of_mixed_sequences_attend_as_whole_sequences(shape: dict[str, Any], window: int | None) -> None:
    """Prefill at once, over a cached prefix, in chunks beside decoding, one token after another."""
    sequences = Sequences(Shape(**shape), [90, 47, 33, 17])
    steps = [{0: 70, 1: 5}, {1: 41, 2: 31, 0: 1}, {0: 1, 2: 1, 1: 1, 3: 16}, {3: 1, 0: 18, 2: 1}]
    parts: dict[int, list[Tensor]] = {i: [] for i in range(4)}
    for step in steps:
        for i, attended in sequences.step(step, window).items():
            parts[i].append(attended)
    for i, attended in parts.items():
        assert_close(torch.cat(attended), sequences.expected(i, window))


@pytest.mark.parametrize(
    ("length", "window"),
    [
        (1, None),
        (LEAST_SEGMENT, None),
        (LEAST_SEGMENT + 1, 1_100),
        (SEGMENTS * LEAST_SEGMENT + 37, None),
        (SEGMENTS * LEAST_SEGMENT + 37, 200),
    ],
)
def test_contexts_are_split_into_any_number_of_segments(length: int, window: int | None) -> None:
    sequences = Sequences(Shape(heads=1, kv_heads=1, head_dim=16, dtype=torch.bfloat16), [length, 3])
    parts = {0: length - 1, 1: 2}
    sequences.step({i: n for i, n in parts.items() if n}, window)
    attended = sequences.step({0: 1, 1: 1}, window)
    for i in (0, 1):
        assert_close(attended[i], sequences.expected(i, window)[-1:])


def test_a_row_does_not_depend_on_the_others_of_its_step() -> None:
    alone, together = (Sequences(Shape(dtype=torch.bfloat16), [301, 40]) for _ in range(2))
    alone.step({0: 300})
    together.step({0: 300, 1: 20})
    assert torch.equal(alone.step({0: 1})[0], together.step({0: 1, 1: 20})[0])


def test_padding_attends_to_zeros_and_is_written_nowhere() -> None:
    sequences = Sequences(Shape(), [20])
    sequences.step({0: 19})
    cache = [cached.clone() for cached in (*sequences.cache.keys, *sequences.cache.values)]
    block = sequences.tables[0][1]
    step = StepMetadata(
        slots=torch.tensor([block * 16 + 3, -1, -1], device=DEVICE),
        query_starts=torch.arange(4, dtype=torch.int32, device=DEVICE),
        context_lengths=torch.tensor([20, 0, 0], dtype=torch.int32, device=DEVICE),
        block_tables=torch.tensor([sequences.tables[0], [0, 0], [0, 0]], dtype=torch.int32, device=DEVICE),
    )
    heads = torch.cat((sequences.heads[0][19:], torch.full((2, 8, 32), float("nan")))).to(DEVICE)
    attended = TritonPagedAttention(sequences.cache, step)(1, *sequences.split(heads), None)
    assert_close(attended[:1], sequences.expected(0)[-1:])
    assert torch.equal(attended[1:], torch.zeros_like(attended[1:]))
    cache[1][block, :, 3], cache[3][block, :, 3] = heads[0, 4:6], heads[0, 6:]
    for before, after in zip(cache, (*sequences.cache.keys, *sequences.cache.values), strict=True):
        torch.testing.assert_close(after, before, equal_nan=True, rtol=0, atol=0)


def test_a_number_that_is_not_finite_reaches_its_own_sequence_alone() -> None:
    sequences = Sequences(Shape(), [20, 20])
    sequences.heads[0][4, 4] = float("nan")
    attended = sequences.step({0: 20, 1: 20})
    assert attended[0][4:, :2].isnan().all()
    assert_close(attended[1], sequences.expected(1))


def test_query_key_and_value_may_lie_apart() -> None:
    sequences = Sequences(Shape(), [20])
    step = StepMetadata.of([20], [20], sequences.tables, block_size=16, device=DEVICE)
    query, key, value = sequences.split(sequences.heads[0].to(DEVICE))
    apart = (query.contiguous(), key.transpose(0, 1).contiguous().transpose(0, 1), value)
    assert_close(TritonPagedAttention(sequences.cache, step)(0, *apart, None), sequences.expected(0))


def test_types_must_be_those_that_the_programs_know() -> None:
    sequences = Sequences(Shape(), [20])
    step = StepMetadata.of([20], [20], sequences.tables, block_size=16, device=DEVICE)
    query, key, value = sequences.split(sequences.heads[0].to(DEVICE))
    with pytest.raises(TypeError, match=r"Queries of torch\.float16"):
        TritonPagedAttention(sequences.cache, step)(0, query.half(), key, value, None)
    with pytest.raises(TypeError, match="float64"):
        TritonPagedAttention(Sequences(Shape(dtype=torch.float64), [20]).cache, step)
