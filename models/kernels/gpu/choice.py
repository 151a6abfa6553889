"""Whether there is Triton: CUDA builds of torch bring it, and CPU builds don't."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from models.kernels.interface import Kernels

_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def gpu_kernels(dtype: torch.dtype) -> Kernels | None:
    """For a decoder of this type on a CUDA device; None without Triton, or for a type that its programs don't know."""
    if dtype not in _TYPES or find_spec("triton") is None:
        return None
    from models.kernels.gpu.kernels import TritonKernels

    return TritonKernels()
