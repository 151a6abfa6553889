"""The compiled kernels: found, loaded, and typed. Where there was no compiler at installation there are none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import CDLL, c_char_p, c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Its OpenMP must be the one that torch computes with, or two pools of threads take turns on the same cores: loaded
# after torch, the library finds torch's under the name that it asks for.
import torch

#: Numbers of `enum Type` in kernels.hpp.
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}

#: Another build of the library may be named, such as one with sanitizers; by no setting, which tests take away.
_PATH = Path(os.environ.get("RZ_CPU_KERNELS") or Path(__file__).parent / "_kernels.so")
_SIGNATURES: dict[str, tuple[type, ...]] = {
    "rz_add_rms_norm": (c_int32, c_int32, c_void_p, c_void_p, c_void_p, c_float, c_void_p, c_int64, c_int64),
    "rz_silu_mul": (c_int32, c_void_p, c_void_p, c_int64, c_int64),
    "rz_pack_linear": (c_int32, c_void_p, c_int64, c_int64, c_int32, c_void_p),
    "rz_linear": (
        *(c_int32, c_int32, c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_int32, c_int32, c_void_p, c_int64),
        *(c_int64, c_int64, c_int64, c_void_p),
    ),
    "rz_packed_rows": (c_void_p, c_void_p, c_void_p, c_int64, c_int64),
    "rz_norm_rotate": (
        c_int32,
        c_void_p,
        c_void_p,
        c_void_p,
        c_float,
        c_void_p,
        c_void_p,
        c_int64,
        c_int64,
        c_int64,
        c_int64,
    ),
    "rz_paged_attention": (*(c_void_p,) * 3, *(c_void_p, c_int64) * 3, c_int64, c_void_p),
    "rz_argmax_finite": (c_int32, c_void_p, c_int64, c_void_p, c_int64, c_int64),
}


#: A function of the library that returns nothing, and what it is called with.
Call = tuple[Callable[..., None], tuple[Any, ...]]


class Calls(SimpleNamespace):
    """The library's kernels, by their names; what is called of them can be kept."""

    def __init__(self, native: CDLL) -> None:
        super().__init__(**{name: getattr(native, name) for name in _SIGNATURES})

    @contextmanager
    def recorded(self) -> Iterator[list[Call]]:
        """Within, all that is called of this object, in order."""
        calls: list[Call] = []
        functions = dict(vars(self))
        vars(self).update({name: _recorded(function, calls) for name, function in functions.items()})
        try:
            yield calls
        finally:
            vars(self).update(functions)


def _recorded(function: Callable[..., None], calls: list[Call]) -> Callable[..., None]:
    def call(*arguments: Any) -> None:
        calls.append((function, arguments))
        function(*arguments)

    return call


#: Whatever has the kernels by their names.
Native = CDLL | Calls


@cache
def library() -> CDLL | None:
    """The library; None where it was not built."""
    if not _PATH.exists():
        return None
    loaded = CDLL(str(_PATH))
    for name, signature in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = signature, None
    loaded.rz_isa.restype = c_char_p
    loaded.rz_choose_isa.argtypes, loaded.rz_choose_isa.restype = (c_char_p,), c_int32
    return loaded


def isa() -> str | None:
    """The instruction set that the kernels use: "amx", "avx512bf16", "avx512", "avx2" or "portable"."""
    loaded = library()
    return None if loaded is None else loaded.rz_isa().decode()


def choose_isa(name: str) -> bool:
    """Use another instruction set; False if this machine does not have it. For tests and measurements."""
    loaded = library()
    return loaded is not None and bool(loaded.rz_choose_isa(name.encode()))
