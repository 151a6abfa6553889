"""The native attention against a plain one, for every instruction set of this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from models.kernels.cpu import registration
from models.kernels.cpu.attention import CpuPagedAttention, is_supported, paged_attention
from models.kernels.cpu.library import choose_isa, isa, library
from models.kernels.cpu.rotary import norm_rotate, norm_rotate_reference
from models.layers.attention import KVCache, PagedAttention, StepMetadata

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels were not built: there was no compiler")

ISAS = ("portable", "avx2", "avx512", "avx512bf16", "amx")
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
TYPES = (torch.float32, torch.bfloat16)
#: Inference alone: there is no gradient to check.
OPERATOR_CHECKS = ("test_schema", "test_faketensor")


@pytest.fixture(params=ISAS)
def each_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    best = isa()
    assert best is not None
    if not choose_isa(request.param):
        pytest.skip(f"this machine has no {request.param}")
    yield request.param
    choose_isa(best)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads wait for each other by spinning, which takes long where others use the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Shape:
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    block_size: int = 16
    dtype: torch.dtype = torch.float32


class Sequences:
    """Sequences whose queries, keys and values are known as a whole, attended to in steps through a scattered cache.

    The first `num_shared` tokens of all of them, in whole blocks, are the first sequence's, which has to compute them.
    """

    def __init__(self, shape: Shape, lengths: Sequence[int], seed: int = 0, num_shared: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
        self.shape = shape
        self.qkv = [torch.randn(n, width, generator=generator).to(shape.dtype) for n in lengths]
        widths = [-(-n // shape.block_size) for n in lengths]
        num_blocks = sum(widths) + 1
        self.cache = KVCache(
            num_layers=2,
            num_blocks=num_blocks,
            block_size=shape.block_size,
            num_kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            dtype=shape.dtype,
            device="cpu",
        )
        for cached in (*self.cache.keys, *self.cache.values):
            cached.fill_(float("nan"))  # nothing may be read that was not written
        order = torch.randperm(num_blocks, generator=generator)
        self._tables = [table.tolist() for table in torch.split(order[: sum(widths)], widths)]
        self._done = [0] + [num_shared] * (len(lengths) - 1)
        for qkv, table in zip(self.qkv[1:], self._tables[1:], strict=True):
            qkv[:num_shared] = self.qkv[0][:num_shared]
            table[: num_shared // shape.block_size] = self._tables[0][: num_shared // shape.block_size]

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = self.shape
        heads = qkv.unflatten(-1, (-1, shape.head_dim))
        query, key, value = heads.split((shape.heads, shape.kv_heads, shape.kv_heads), dim=1)
        return query, key, value

    def step(self, parts: dict[int, int], window: int | None = None, layer: int = 1) -> dict[int, Tensor]:
        """The next so many tokens of these sequences together -> what each of them attended to."""
        spans = {i: slice(self._done[i], self._done[i] + n) for i, n in parts.items()}
        for i, span in spans.items():
            self._done[i] = span.stop
        step = StepMetadata.of(
            list(parts.values()),
            [span.stop for span in spans.values()],
            [self._tables[i] for i in parts],
            block_size=self.shape.block_size,
        )
        flat = torch.cat([self.qkv[i][span] for i, span in spans.items()])
        attended = CpuPagedAttention(self.cache, step)(layer, *self.split(flat), window)
        return dict(zip(parts, attended.split(list(parts.values())), strict=True))

    def expected(self, index: int, window: int | None = None) -> Tensor:
        """In float64, without a cache."""
        query, key, value = (each.double() for each in self.split(self.qkv[index]))
        group = self.shape.heads // self.shape.kv_heads
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", query, key) / self.shape.head_dim**0.5
        distance = torch.arange(len(query))[:, None] - torch.arange(len(query))
        unseen = (distance < 0) if window is None else (distance < 0) | (distance >= window)
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(unseen, float("-inf")).softmax(-1), value)


def assert_close(attended: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[attended.dtype]
    torch.testing.assert_close(attended.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("window", [None, 1, 20, 300])
@pytest.mark.parametrize(
    "shape",
    [
        {"heads": 12, "kv_heads": 12, "head_dim": 64},
        {"heads": 4, "kv_heads": 2, "head_dim": 128, "block_size": 32},
        {"heads": 6, "kv_heads": 2, "head_dim": 80, "block_size": 48},
        {"heads": 20, "kv_heads": 1, "head_dim": 256},
        {"heads": 4, "kv_heads": 4, "head_dim": 96, "block_size": 7},
        {"heads": 3, "kv_heads": 1, "head_dim": 10, "block_size": 16},
        {"heads": 2, "kv_heads": 1, "head_dim": 2, "block_size": 1},
    ],
)
@pytest.mark.usefixtures("each_isa")
def test_steps_of_mixed_sequences_attend_as_whole_sequences(
    shape: dict[str, int], window: int | None, dtype: torch.dtype
) -> None:
    """Prefill at once, over a cached prefix, in chunks beside decoding, one token after another."""
    sequences = Sequences(Shape(**shape, dtype=dtype), [290, 47, 33, 17])
    steps = [{0: 270, 1: 5}, {1: 41, 2: 31, 0: 1}, {0: 1, 2: 1, 1: 1, 3: 16}, {3: 1, 0: 18, 2: 1}]
    parts: dict[int, list[Tensor]] = {i: [] for i in range(4)}
    for step in steps:
        for i, attended in sequences.step(step, window).items():
            parts[i].append(attended)
    for i, attended in parts.items():
        assert_close(torch.cat(attended), sequences.expected(i, window))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("window", [None, 700])
@pytest.mark.usefixtures("each_isa")
def test_a_long_context_is_decoded_in_segments(dtype: torch.dtype, window: int | None) -> None:
    sequences = Sequences(Shape(dtype=dtype), [1601, 40])
    sequences.step({0: 1600, 1: 39}, window)
    attended = sequences.step({1: 1, 0: 1}, window)
    for i in (0, 1):
        assert_close(attended[i], sequences.expected(i, window)[-1:])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.usefixtures("each_isa")
def test_an_answer_depends_neither_on_its_neighbours_nor_on_the_threads(dtype: torch.dtype) -> None:
    shape = Shape(heads=6, kv_heads=2, head_dim=64, dtype=dtype)
    answers = []
    for others, threads in (({}, 1), ({}, 2), ({1: 700, 2: 1}, 2), ({2: 33, 3: 5}, 1)):
        torch.set_num_threads(threads)
        sequences = Sequences(shape, [1302, 701, 34, 6])
        parts = [sequences.step({0: 1300, **others})[0]]
        parts += [sequences.step({**dict.fromkeys(others, 1), 0: 1})[0] for _ in range(1)]
        parts += [sequences.step({0: 1})[0]]
        answers.append(torch.cat(parts))
    for answer in answers[1:]:
        assert torch.equal(answer, answers[0])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("num_shared", [96, 272, 560])
@pytest.mark.parametrize("shape", [{"heads": 3, "kv_heads": 3, "head_dim": 64}, {"heads": 6, "kv_heads": 2}])
@pytest.mark.usefixtures("each_isa")
def test_sequences_that_share_a_prefix_answer_together_as_each_does_alone(
    shape: dict[str, int], num_shared: int, window: int | None, dtype: torch.dtype
) -> None:
    """To the bit; more of them than are computed together, some as long as the prefix and some much longer."""
    lengths = [num_shared + own for own in (40, 1, 17, 30, 31, 300, 2, 33, 16, 15, 5, 1, 18, 64, 47, 3, 29, 5)]
    answers = []
    for is_together in (True, False):
        sequences = Sequences(Shape(**shape, dtype=dtype), lengths, num_shared=num_shared)
        sequences.step({0: lengths[0] - 1}, window)
        for i, length in enumerate(lengths[1:], start=1):
            if length > num_shared + 1:
                sequences.step({i: length - num_shared - 1}, window)
        steps = [dict.fromkeys(range(len(lengths)), 1)] if is_together else [{i: 1} for i in range(len(lengths))]
        answers.append({i: each for step in steps for i, each in sequences.step(step, window).items()})
    for i in range(len(lengths)):
        assert torch.equal(answers[0][i], answers[1][i])
    assert_close(answers[0][3], sequences.expected(3, window)[-1:])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("num_own", [1, 24])
@pytest.mark.usefixtures("each_isa")
def test_a_block_may_be_shared_in_the_step_that_fills_it(num_own: int, dtype: torch.dtype) -> None:
    """Those who share it come first in the step, and ask for the last of its tokens too."""
    sequences = Sequences(Shape(dtype=dtype), [16, 16 + num_own], num_shared=16)
    sequences.step({0: 15})
    attended = sequences.step({1: num_own, 0: 1})
    for i in (0, 1):
        assert_close(attended[i], sequences.expected(i)[-len(attended[i]) :])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.usefixtures("each_isa")
def test_an_answer_does_not_depend_on_how_its_prompt_was_cut(dtype: torch.dtype, window: int | None) -> None:
    shape = Shape(heads=6, kv_heads=2, head_dim=64, dtype=dtype)
    answers = []
    for chunks in ((600,), (300, 300), (7, 129, 402, 62)):
        sequences = Sequences(shape, [600])
        answers.append(torch.cat([sequences.step({0: chunk}, window)[0] for chunk in chunks]))
    for answer in answers[1:]:
        assert torch.equal(answer, answers[0])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.usefixtures("each_isa")
def test_a_nan_fails_its_own_sequence_alone(dtype: torch.dtype) -> None:
    sequences = Sequences(Shape(dtype=dtype), [40, 40])
    sequences.qkv[0][3] = float("nan")
    attended = sequences.step({0: 40, 1: 40})
    assert attended[0][3:].isnan().all()
    assert_close(attended[1], sequences.expected(1))


def test_query_key_and_value_may_lie_apart() -> None:
    sequences = Sequences(Shape(), [20])
    step = StepMetadata.of([20], [20], [sequences._tables[0]], block_size=16)
    query, key, value = sequences.split(sequences.qkv[0])
    attention = CpuPagedAttention(sequences.cache, step)
    apart = (query.contiguous(), key.transpose(0, 1).contiguous().transpose(0, 1), value)
    assert_close(attention(0, *apart, None), sequences.expected(0))


def test_the_reference_serves_what_the_kernel_does_not_know() -> None:
    for shape, native in ((Shape(), True), (Shape(dtype=torch.float16), False), (Shape(head_dim=258), False)):
        cache = Sequences(shape, [4]).cache
        step = StepMetadata.of([4], [4], [[0]], block_size=16)
        assert is_supported(cache) == native
        assert isinstance(paged_attention(cache, step), CpuPagedAttention if native else PagedAttention)
        if not native:
            with pytest.raises(ValueError, match="reference"):
                CpuPagedAttention(cache, step)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize("tokens", [1, 5, 40])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim"), [(12, 12, 64), (16, 8, 128), (4, 2, 80), (3, 1, 10), (2, 1, 2)]
)
@pytest.mark.usefixtures("each_isa")
def test_heads_are_normed_and_rotated(
    num_heads: int, num_kv_heads: int, head_dim: int, tokens: int, with_norm: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(tokens, (num_heads + 2 * num_kv_heads) * head_dim, generator=generator).to(dtype)
    angles = torch.randn(tokens, 1, head_dim // 2, generator=generator) * 10
    weights = torch.randn(2, head_dim, generator=generator).to(dtype).unbind() if with_norm else (None, None)
    expected, turned = qkv.double(), qkv.clone()
    doubles = [None if weight is None else weight.double() for weight in weights]
    heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads}
    norm_rotate_reference(expected, angles.cos(), angles.sin(), *doubles, 1e-6, **heads)
    norm_rotate(turned, angles.cos(), angles.sin(), *weights, 1e-6, **heads)
    tolerance = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(turned.double(), expected, atol=tolerance, rtol=tolerance)
    values = (num_heads + num_kv_heads) * head_dim
    assert torch.equal(turned[:, values:], qkv[:, values:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_attention_is_an_operator_of_torch(dtype: torch.dtype) -> None:
    shape = Shape(dtype=dtype)
    sequences = Sequences(shape, [20, 5])
    step = StepMetadata.of([20, 5], [20, 5], sequences._tables, block_size=16)
    cache, qkv = sequences.cache, torch.cat(sequences.qkv)
    place = (step.slots, step.query_starts, step.context_lengths, step.block_tables)
    arguments = (*sequences.split(qkv), cache.keys[0], cache.values[0], *place, None)
    torch.library.opcheck(registration.paged_attention, arguments, test_utils=OPERATOR_CHECKS)
    assert_close(registration.paged_attention(*arguments)[:20], sequences.expected(0))


def test_norm_and_rotation_are_an_operator_of_torch() -> None:
    weight, angles = torch.ones(8), torch.randn(3, 1, 4)
    for weights in ((weight, weight), (None, None)):
        arguments = (torch.randn(3, 6 * 8), angles.cos(), angles.sin(), *weights, 1e-6, 2, 2)
        torch.library.opcheck(registration.norm_rotate, arguments, test_utils=OPERATOR_CHECKS)
