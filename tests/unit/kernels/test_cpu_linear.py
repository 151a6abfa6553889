from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from models.kernels.cpu.kernels import CpuKernels
from models.kernels.cpu.library import choose_isa, isa, library
from models.kernels.cpu.linear import PackedLinear, linear_reference, quantised_reference
from models.kernels.cpu.memory import Arena, Workspace

ISAS = ["amx", "avx512bf16", "avx512", "avx2", "portable"]
SHAPES = [(1, 1, 1), (1, 32, 64), (2, 33, 31), (5, 48, 70), (13, 96, 128), (31, 130, 200), (37, 64, 96), (70, 40, 129)]
# Rows at distances that share few sets of a cache are copied apart first.
SHAPES += [(14, 40, 1024), (26, 33, 2048)]

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels were not built: there was no C++ compiler")


@pytest.fixture(params=ISAS)
def chosen_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    best = isa()
    assert best is not None
    if not choose_isa(request.param):
        pytest.skip(f"this machine has no {request.param}")
    yield request.param
    choose_isa(best)


def random(*shape: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed(weight: Tensor, bias: Tensor | None = None, **options: object) -> PackedLinear:
    native = library()
    assert native is not None
    defaults = {"is_quantised": False, "is_gated": False, "dtype": torch.float32}
    return PackedLinear(native, weight, bias, arena=Arena(), workspace=Workspace(), **{**defaults, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(("rows", "outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_packed_weight_multiplies_as_the_plain_one(
    chosen_isa: str, rows: int, outputs: int, inputs: int, has_bias: bool
) -> None:
    hidden, weight = random(rows, inputs, seed=0), random(outputs, inputs, seed=1)
    bias = random(outputs, seed=2) if has_bias else None
    expected = linear_reference(hidden, weight, bias, is_gated=False)
    torch.testing.assert_close(packed(weight, bias)(hidden), expected, rtol=1e-4, atol=1e-4)
    rounded = packed(weight, bias, dtype=torch.bfloat16)(hidden)
    torch.testing.assert_close(rounded.float(), expected, rtol=2**-7, atol=1e-2)


@pytest.mark.parametrize(("rows", "half", "inputs"), [(1, 1, 2), (3, 16, 32), (7, 20, 33), (40, 50, 96), (33, 32, 64)])
@pytest.mark.parametrize("is_quantised", [False, True])
def test_a_gated_weight_gives_silu_of_gate_times_up(
    chosen_isa: str, rows: int, half: int, inputs: int, is_quantised: bool
) -> None:
    hidden, weight, bias = random(rows, inputs, seed=3), random(2 * half, inputs, seed=4), random(2 * half, seed=5)
    reference = quantised_reference if is_quantised else linear_reference
    expected = reference(hidden, weight, bias, is_gated=True)
    gated = packed(weight, bias, is_gated=True, is_quantised=is_quantised)(hidden)
    # A value in the middle of two integers may be rounded to either.
    tolerance = 0.05 * expected.abs().max().item() if is_quantised else 1e-4
    torch.testing.assert_close(gated, expected, rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize(("rows", "outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_int8_weight_multiplies_as_integers_do(
    chosen_isa: str, rows: int, outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    hidden, weight, bias = (
        random(rows, inputs, seed=6, dtype=dtype),
        random(outputs, inputs, seed=7, dtype=dtype),
        random(outputs, seed=8),
    )
    expected = quantised_reference(hidden, weight, bias, is_gated=False)
    result = packed(weight, bias, is_quantised=True)(hidden)
    # Few inputs may be rounded the other way where they lie in the middle of two integers.
    one_step = hidden.float().abs().amax(1, keepdim=True) / 127 * weight.float().abs().max()
    assert ((result - expected).abs() <= 2.5 * one_step + 1e-4).all()
    assert (result - expected).abs().mean() <= 0.2 * one_step.mean() + 1e-4


def test_int8_gives_the_same_bits_on_every_instruction_set() -> None:
    best = isa()
    assert best is not None
    hidden, weight = random(45, 300, seed=9), random(70, 300, seed=10)
    results = []
    for name in ISAS:
        if choose_isa(name):
            results.append(packed(weight, is_quantised=True)(hidden).clone())
    choose_isa(best)
    # Only the scales' multiplication may be fused with an addition in one and not in the other.
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-5, atol=0.3)


@pytest.mark.parametrize("inputs", [128, 1024])
def test_a_row_of_a_product_depends_on_its_own_row_alone(chosen_isa: str, inputs: int) -> None:
    hidden, weight = random(70, inputs, seed=11), random(96, inputs, seed=12)
    for is_quantised in (False, True):
        linear = packed(weight, is_quantised=is_quantised)
        whole = linear(hidden).clone()
        for rows in (slice(0, 1), slice(3, 20), slice(16, 49)):
            assert torch.equal(linear(hidden[rows]), whole[rows])


@pytest.mark.parametrize("is_quantised", [False, True])
@pytest.mark.parametrize("outputs", [528, 544])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_result_too_large_for_the_caches_is_that_of_its_parts(
    chosen_isa: str, dtype: torch.dtype, outputs: int, is_quantised: bool
) -> None:
    """Streamed where rows are whole lines: those of 528 outputs in float32 alone, their last 16 not among them."""
    hidden, weight, bias = random(1040, 64, seed=25), random(outputs, 64, seed=26), random(outputs, seed=27)
    linear = packed(weight, bias, dtype=dtype, is_quantised=is_quantised)
    whole = linear(hidden).clone()
    for first in range(0, 1040, 40):
        assert torch.equal(linear(hidden[first : first + 40]), whole[first : first + 40])


def test_rows_of_a_strided_input_are_multiplied(chosen_isa: str) -> None:
    wide, weight = random(9, 256, seed=13), random(40, 96, seed=14)
    part = wide[:, 32:128]
    expected = linear_reference(part, weight, None, is_gated=False)
    torch.testing.assert_close(packed(weight)(part), expected, rtol=1e-4, atol=1e-4)


def test_rows_of_a_packed_weight_are_those_that_were_packed(chosen_isa: str) -> None:
    weight = random(75, 50, seed=15)
    rows = torch.tensor([0, 74, 16, 15, 15])
    assert torch.equal(packed(weight).rows(rows), weight[rows].float())


@pytest.mark.parametrize("is_quantised", [False, True])
def test_a_nan_stays_in_its_row(chosen_isa: str, is_quantised: bool) -> None:
    hidden, weight = random(20, 64, seed=16), random(32, 64, seed=17)
    hidden[7, 3] = float("nan")
    result = packed(weight, is_quantised=is_quantised)(hidden)
    assert result[7].isnan().all()
    assert result[[row for row in range(20) if row != 7]].isfinite().all()


@pytest.mark.parametrize("is_gated", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_greatest_is_the_first_of_equals_and_none_where_one_is_not_finite(
    chosen_isa: str, dtype: torch.dtype, is_gated: bool
) -> None:
    native = library()
    assert native is not None
    kernels = CpuKernels(native, is_quantised=False)
    logits = random(8, 77, seed=18, dtype=dtype)
    logits[1, [20, 40]] = 9.0
    logits[2, 76] = float("nan")
    logits[3, 0] = float("inf")
    logits[4, 5] = -float("inf")
    logits[5] = 0.0
    wide = torch.cat((logits, logits), dim=1)[:, :77]
    found = kernels.greatest(wide).tolist()
    assert found[1:6] == [20, -1, -1, -1, 0]
    for row in (0, 6, 7):
        assert found[row] == logits[row].argmax().item()


@pytest.mark.parametrize("size", [1, 15, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_delta", [False, True])
def test_a_norm_is_that_of_the_sum_as_it_is_rounded(
    chosen_isa: str, size: int, dtype: torch.dtype, has_delta: bool
) -> None:
    native = library()
    assert native is not None
    delta, residual, weight = (random(9, size, seed=n, dtype=dtype) for n in (19, 20, 21))
    total = residual + delta if has_delta else residual.clone()
    expected = total.float() * torch.rsqrt(total.float().square().mean(-1, keepdim=True) + 1e-5) * weight[0].float()
    kernels = CpuKernels(native, is_quantised=False)
    normed, sum_ = kernels.add_norm(delta if has_delta else None, residual, weight[0], 1e-5)
    assert torch.equal(sum_, total)
    torch.testing.assert_close(normed, expected.to(dtype))


def test_a_wide_residual_is_not_rounded(chosen_isa: str) -> None:
    native = library()
    assert native is not None
    delta, residual = (random(9, 70, seed=seed, dtype=torch.float32) for seed in (22, 23))
    weight = random(70, seed=24)
    total = residual + delta
    expected = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + 1e-5) * weight.float()
    normed, sum_ = CpuKernels(native, is_quantised=False).add_norm(delta, residual, weight, 1e-5)
    assert torch.equal(sum_, total)
    torch.testing.assert_close(normed, expected.to(torch.bfloat16))
