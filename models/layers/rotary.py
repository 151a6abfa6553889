"""Rotary position embedding: the frequencies of each type, and the rotation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.rope import Rope, RopeType


class Rotary(nn.Module):
    """Cosine and sine of every position, [tokens, 1, head_dim / 2] float32, as transformers 5.23 computes them.

    With a dynamic rope they also depend on how long the sequence was when the token was first computed. In
    transformers' `generate` that is the prompt's length for the tokens of the prompt, and the token's own position + 1
    after it; keys are cached as they were rotated then. `prompt_lengths` makes every token repeat that, however the
    prompt was cut into chunks and whatever is computed again.
    """

    inverse_frequencies: Tensor

    def __init__(self, rope: Rope, head_dim: int, max_position_embeddings: int, *, device: torch.device | str) -> None:
        super().__init__()
        self._rope = rope
        self._max_length = max_position_embeddings
        self._half = head_dim // 2
        self.register_buffer("inverse_frequencies", _frequencies(rope, head_dim).to(device), persistent=False)

    @torch.no_grad()
    def forward(self, positions: Tensor, prompt_lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        frequencies = self.inverse_frequencies
        if self._rope.type is RopeType.DYNAMIC:
            if prompt_lengths is None:
                raise ValueError("a dynamic rope needs prompt_lengths: the length of each token's prompt, [tokens]")
            frequencies = self._dynamic_frequencies(torch.maximum(prompt_lengths, positions + 1))
        angles = positions[:, None].float() * frequencies
        scale = self._rope.attention_factor
        return (angles.cos() * scale)[:, None], (angles.sin() * scale)[:, None]

    def _dynamic_frequencies(self, lengths: Tensor) -> Tensor:
        """[tokens] -> [tokens, head_dim / 2]: past max_position_embeddings, the base grows with the length."""
        dim, factor = 2 * self._half, self._rope.factor
        stretch = factor * lengths.clamp(min=self._max_length) / self._max_length - (factor - 1)
        base = self._rope.theta * stretch ** (dim / (dim - 2))
        return 1.0 / base[:, None] ** _exponents(dim).to(lengths.device)


def rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """[tokens, heads, head_dim], whose first and second halves are the two coordinates of each rotation."""
    cosine, sine = cosine.to(heads.dtype), sine.to(heads.dtype)
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


def _exponents(dim: int) -> Tensor:
    return torch.arange(0, dim, 2, dtype=torch.int64).float() / dim


def _frequencies(rope: Rope, dim: int) -> Tensor:
    """[head_dim / 2] float32; for a dynamic rope those of a sequence within max_position_embeddings."""
    plain = 1.0 / (rope.theta ** _exponents(dim))
    match rope.type:
        case RopeType.LINEAR:
            return plain / rope.factor
        case RopeType.LLAMA3:
            return _llama3(rope, plain)
        case RopeType.YARN:
            return _yarn(rope, dim)
        case _:
            return plain


def _llama3(rope: Rope, plain: Tensor) -> Tensor:
    """Llama 3.1: wavelengths above length/low are stretched, those below length/high kept, a ramp between."""
    length, low, high = rope.original_max_position_embeddings, rope.low_freq_factor, rope.high_freq_factor
    wavelengths = 2 * math.pi / plain
    smooth = (length / wavelengths - low) / (high - low)
    ramp = (1 - smooth) * plain / rope.factor + smooth * plain
    scaled = torch.where(wavelengths > length / low, plain / rope.factor, plain)
    between = (wavelengths >= length / high) & (wavelengths <= length / low)
    return torch.where(between, ramp, scaled)


def _yarn(rope: Rope, dim: int) -> Tensor:
    """arXiv:2309.00071: dimensions of many rotations are kept, those of few divided by the factor, a ramp between."""
    length = rope.original_max_position_embeddings

    def dimension(num_rotations: float) -> float:
        """The (fractional) dimension that turns so often within the original length."""
        return (dim * math.log(length / (num_rotations * 2 * math.pi))) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # the ramp would divide by zero
    kept = 1 - ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    wavelengths = rope.theta ** _exponents(dim)
    return 1.0 / (rope.factor * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept
