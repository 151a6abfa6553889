"""Where Triton's programs are tested: interpreted on the CPU, or on a GPU by TRITON_INTERPRET=0 (see conftest.py)."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

if os.environ["TRITON_INTERPRET"] != "1" and not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

DEVICE = torch.device("cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda")
_TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def assert_close(result: Tensor, expected: Tensor) -> None:
    """Within what the type of the result can tell apart."""
    tolerance = _TOLERANCE[result.dtype]
    torch.testing.assert_close(result.double().cpu(), expected.double().cpu(), atol=tolerance, rtol=tolerance)
