"""How far bfloat16 is from float32 on the model of workload W1, whose shapes are real and whose weights are random."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.accuracy import logprobs
from benchmarks.make_model import SHAPES, write_model
from models.kernels.cpu.kernels import cpu_kernels
from models.kernels.interface import PLAIN

NUM_TOKENS = 128


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("w1")
    write_model(folder, SHAPES["llama-110m"])
    return folder


@pytest.fixture(scope="module")
def exact(model_path: Path) -> torch.Tensor:
    return logprobs(model_path, torch.float32, PLAIN, NUM_TOKENS)


def test_log_probabilities_of_bfloat16_are_near_those_of_float32(model_path: Path, exact: torch.Tensor) -> None:
    kernels = cpu_kernels(torch.bfloat16)
    if kernels is None:
        pytest.skip("the CPU kernels were not built: a C++ compiler is missing")
    difference = (logprobs(model_path, torch.bfloat16, kernels, NUM_TOKENS) - exact).abs().mean()
    assert 0.001 < difference < 0.02  # less would not be bfloat16


def test_kernels_in_float32_change_next_to_nothing(model_path: Path, exact: torch.Tensor) -> None:
    kernels = cpu_kernels(torch.float32)
    if kernels is None:
        pytest.skip("the CPU kernels were not built: a C++ compiler is missing")
    assert (logprobs(model_path, torch.float32, kernels, NUM_TOKENS) - exact).abs().max() < 1e-3
