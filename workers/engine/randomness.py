"""Random numbers that depend on nothing but what they are for.

A generator with a state gives a request other numbers whenever it is batched, preempted or tried again. Here every
number is a hash of (seed, choice, position, token), so that a request repeats whatever happens around it.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

#: Largest float32 below 1.
_BELOW_ONE = 1.0 - 2.0**-24


def draw_key(seed: int, choice: int, position: int) -> tuple[int, int]:
    """Two 32-bit numbers, signed as torch has them, for the token at `position` of a choice's answer."""
    digest = hashlib.blake2b(f"{seed}:{choice}:{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little", signed=True), int.from_bytes(digest[4:], "little", signed=True)


def exponentials(keys: Tensor, vocab_size: int) -> Tensor:
    """Independent draws from the exponential distribution of rate 1, [rows, vocab_size] float32.

    `keys` [rows, 2] int32: a `draw_key` for each row.
    """
    first, second = keys.unsqueeze(-1).unbind(1)  # [rows, 1] each
    bits = torch.arange(vocab_size, dtype=torch.int32, device=keys.device).unsqueeze(0) ^ first
    bits = _mix(_mix(bits) + second)
    # The smallest draws decide who wins a race: float32 keeps small numbers apart from each other, where it would round
    # those close to 1 together, and so does log1p.
    uniform = (bits & 0x7FFFFFFF).to(torch.float32).add_(0.5).mul_(2.0**-31)
    return uniform.clamp_(max=_BELOW_ONE).neg_().log1p_().neg_()


def _mix(bits: Tensor) -> Tensor:
    """Chris Wellons' `lowbias32`, a permutation of 32-bit numbers whose every output bit depends on every input bit."""
    bits = (bits ^ _shift_right(bits, 16)) * 0x7FEB352D
    bits = (bits ^ _shift_right(bits, 15)) * (0x846CA68B - 2**32)
    return bits ^ _shift_right(bits, 16)


def _shift_right(bits: Tensor, places: int) -> Tensor:
    """Logical, where torch shifts signed numbers arithmetically."""
    return (bits >> places) & ((1 << (32 - places)) - 1)
