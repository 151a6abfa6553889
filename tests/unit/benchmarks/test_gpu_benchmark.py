from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from benchmarks.gpu import table


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], capture_output=True, text=True, timeout=120, check=False
    )
    assert process.returncode == 1
    assert "no CUDA device" in process.stderr


def test_speed_is_shown_beside_the_bandwidth_that_was_measured() -> None:
    result = {
        "workload": "W2",
        "model": "qwen3-0.6b",
        "num_prompt_tokens": 4_096,
        "num_output_tokens": 1_024,
        "machine": {"gpu": "a GPU"},
        "own": [1.0, 2.0, 3.0],
        "peer": [4.0],
        "ratio": 2.0,
        "operations": 4e12,
        "bytes_read": 8e9,
        "bandwidth": 16e9,
    }
    shown = table(result)
    rows = list(zip(*(list(column.cells) for column in shown.columns), strict=True))
    assert rows[0] == ("ours", "2.00", "512", "2.0", "4", "25.0%")
    assert rows[1] == ("transformers, continuous", "4.00", "256", "1.0", "2", "12.5%")
    assert rows[2][1] == "2.00"
