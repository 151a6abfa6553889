"""Triton's norms, rotations, gates and greatest logits against torch's, with odd sizes; see `triton_device.py`."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from triton_device import DEVICE, assert_close

pytest.importorskip("triton", reason="Triton is not installed: there is none for this system")

from models.kernels.gpu import rows
from models.kernels.gpu.kernels import TritonKernels
from models.kernels.interface import PLAIN, rms_norm
from models.layers.rotary import rotate

TYPES = (torch.float32, torch.bfloat16, torch.float16)
GENERATOR = torch.Generator().manual_seed(0)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=GENERATOR).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("is_wide", [False, True])
@pytest.mark.parametrize(("num_rows", "size"), [(1, 64), (3, 70), (2, 1_025)])
def test_the_sum_is_kept_in_the_residual_and_its_norm_returned(
    num_rows: int, size: int, is_wide: bool, dtype: torch.dtype
) -> None:
    residual = draw(num_rows, size, dtype=torch.float32 if is_wide else dtype)
    delta, weight = draw(num_rows, size, dtype=dtype), draw(size, dtype=dtype)
    total = (residual.float() + delta.float()).to(residual.dtype)
    normed = rows.add_norm(delta, residual, weight, 1e-6)
    # The interpreter cuts bfloat16 off where a GPU rounds it.
    assert_close(residual, total)
    if residual.dtype == torch.float32:
        assert torch.equal(residual, total)
    assert normed.dtype == dtype
    assert_close(normed, rms_norm(residual.double(), weight.double(), 1e-6))
    before = residual.clone()
    assert torch.equal(rows.add_norm(None, residual, weight, 1e-6), normed)
    assert torch.equal(residual, before)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize(("num_heads", "head_dim"), [((4, 2), 64), ((3, 1), 10), ((2, 1), 2), ((2, 2), 80)])
def test_heads_are_normed_and_rotated_in_place(
    num_heads: tuple[int, int], head_dim: int, has_norm: bool, dtype: torch.dtype
) -> None:
    queries, keys = num_heads
    heads = draw(5, queries + 2 * keys, head_dim, dtype=dtype)
    angles = draw(5, 1, head_dim // 2) * 10
    rotation = (angles.cos(), angles.sin())
    weights = (draw(head_dim, dtype=dtype), draw(head_dim, dtype=dtype)) if has_norm else (None, None)
    exact = heads.double()
    expected = list(exact.split((queries, keys, keys), dim=1))
    for part, weight in enumerate(weights):
        if weight is not None:
            expected[part] = rms_norm(expected[part], weight.double(), 1e-6)
        expected[part] = rotate(expected[part], *rotation)
    result = TritonKernels().norm_rotate(heads, *weights, 1e-6, rotation, num_heads)
    for part, wanted in zip(result, expected, strict=True):
        torch.testing.assert_close(part.double(), wanted, atol=3e-2, rtol=3e-2)
        assert_close(part / wanted.abs().max(), wanted / wanted.abs().max())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("num_rows", "size"), [(1, 8), (3, 1_024), (2, 1_500)])
def test_a_gate_is_multiplied(num_rows: int, size: int, dtype: torch.dtype) -> None:
    gate_up = draw(num_rows, 2 * size, dtype=dtype)
    gate, up = gate_up.double().chunk(2, dim=-1)
    expected = functional.silu(gate) * up
    torch.testing.assert_close(rows.silu_mul(gate_up).double(), expected, atol=2e-2, rtol=2e-2)
    if dtype == torch.float32:
        assert_close(rows.silu_mul(gate_up), expected)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("entries", [1, 15, 1_024, 20_011])
def test_the_first_greatest_of_each_row_is_found(entries: int, dtype: torch.dtype) -> None:
    logits = draw(6, entries).round(decimals=1).to(dtype)  # rounded, so that several are equal
    logits[1, entries // 2] = float("nan")
    logits[2, entries - 1] = float("-inf")
    logits[3, 0] = float("inf")
    expected = PLAIN.greatest(logits)
    assert expected[1:4].tolist() == [-1, -1, -1]
    assert torch.equal(rows.greatest(logits), expected)
    wide = torch.cat((logits, torch.full_like(logits, 1e4)), dim=1)
    assert torch.equal(rows.greatest(wide[:, :entries]), expected)


def test_logits_are_given_in_the_type_that_was_asked_for() -> None:
    weight = draw(50, 16, dtype=torch.bfloat16)
    hidden = draw(3, 16, dtype=torch.bfloat16)
    project = TritonKernels().projection(weight, None, dtype=torch.float32)
    assert torch.equal(project(hidden), PLAIN.projection(weight, None, dtype=torch.float32)(hidden))
    assert project(hidden[:1]).data_ptr() == project(hidden).data_ptr()
    assert project(draw(0, 16, dtype=torch.bfloat16)).shape == (0, 50)
    assert project(draw(5, 16, dtype=torch.bfloat16)).shape == (5, 50)
