from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from models.kernels.cpu import registration
from models.kernels.cpu.elementwise import add_rms_norm, add_rms_norm_reference, silu_mul, silu_mul_reference
from models.kernels.cpu.library import choose_isa, isa, library

OPERATOR_CHECKS = ("test_schema", "test_faketensor")

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels were not built: there was no C++ compiler")


@pytest.fixture(params=["amx", "avx512bf16", "avx512", "avx2", "portable"])
def chosen_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    best = isa()
    assert best is not None
    if not choose_isa(request.param):
        pytest.skip(f"this machine has no {request.param}")
    yield request.param
    choose_isa(best)


def random(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return (3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (3, 15), (7, 64), (300, 100)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gate_is_that_of_the_reference(chosen_isa: str, rows: int, size: int, dtype: torch.dtype) -> None:
    native = library()
    assert native is not None
    gate_up = random(rows, 2 * size, seed=0, dtype=dtype)
    gate_up[0, 0] = -200.0  # whose exponential is no float
    out = torch.empty(rows, size, dtype=dtype)
    silu_mul(native, gate_up, out)
    torch.testing.assert_close(out, silu_mul_reference(gate_up))


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (3, 15), (7, 64), (300, 100)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_wide", [False, True])
def test_the_norm_is_that_of_the_reference(
    chosen_isa: str, rows: int, size: int, dtype: torch.dtype, is_wide: bool
) -> None:
    native = library()
    assert native is not None
    wide = torch.float32 if is_wide else dtype
    delta, residual = (random(rows, size, seed=seed, dtype=wide) for seed in (1, 2))
    weight = random(size, seed=3, dtype=dtype)
    expected, total = add_rms_norm_reference(delta, residual, weight, 1e-6)
    out = torch.empty(rows, size, dtype=dtype)
    add_rms_norm(native, delta, residual, weight, 1e-6, out)
    assert torch.equal(residual, total)
    torch.testing.assert_close(out, expected)


def test_the_operators_are_what_they_are_registered_as() -> None:
    weight = random(24, seed=4, dtype=torch.bfloat16)
    delta, residual = (random(5, 24, seed=seed, dtype=torch.float32) for seed in (5, 6))
    torch.library.opcheck(registration.add_rms_norm, (delta, residual, weight, 1e-6), test_utils=OPERATOR_CHECKS)
    expected, _ = add_rms_norm_reference(delta, residual, weight, 1e-6)
    torch.testing.assert_close(registration.add_rms_norm(delta, residual, weight, 1e-6), expected)
    gate_up = random(5, 48, seed=7, dtype=torch.bfloat16)
    torch.library.opcheck(registration.silu_mul, (gate_up,), test_utils=OPERATOR_CHECKS)
    torch.testing.assert_close(registration.silu_mul(gate_up), silu_mul_reference(gate_up))
