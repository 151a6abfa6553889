"""Times the native attention beside the torch reference and beside scaled_dot_product_attention on contiguous keys.

    python -m benchmarks.attention [--threads 2] [--rounds 9] [--isa avx512bf16]

The three run in turn, round after round; a number is the median of its rounds. Scaled_dot_product_attention reads keys
and values that were gathered and padded beforehand: it is what a kernel would cost that need not find them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.kernels.cpu.attention import CpuPagedAttention
from models.kernels.cpu.library import choose_isa, isa
from models.layers.attention import KVCache, PagedAttention, StepMetadata


@dataclass(frozen=True)
class Shape:
    name: str
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Load:
    """Sequences of one kind of step."""

    name: str
    query_length: int
    context_length: int
    num_sequences: int
    #: Sequences of a family have their first tokens in the same blocks, as W4's; 0 is none.
    num_families: int = 0
    num_shared: int = 0

    @property
    def num_cached(self) -> int:
        """Tokens whose keys and values are in the cache."""
        num_once = self.num_shared * (self.num_sequences - self.num_families) if self.num_families else 0
        return self.context_length * self.num_sequences - num_once

    def __str__(self) -> str:
        families = f" ({self.num_families} families)" if self.num_families else ""
        return f"{self.name} {self.num_sequences} x {self.query_length} of {self.context_length}{families}"


SHAPES = (Shape("W1", 12, 12, 64), Shape("W2", 16, 8, 128))
LOADS = (
    Load("decode", 1, 160, 32),
    Load("decode", 1, 400, 32),
    Load("decode", 1, 16384, 1),
    Load("prefill", 128, 128, 16),
    Load("prefill", 32, 416, 16),
    Load("decode", 1, 424, 64, num_families=2, num_shared=384),
    Load("prefill", 32, 416, 16, num_families=2, num_shared=384),
    Load("prefill", 2048, 2048, 1),
    Load("prefill", 512, 16384, 1),
)
#: Layers whose caches take turns, so that keys come from where they come from in a model: not from the nearest cache.
NUM_LAYERS = 8


class Step:
    """One step's inputs, and how each contestant computes a layer of it."""

    def __init__(self, shape: Shape, load: Load, dtype: torch.dtype, block_size: int = 16) -> None:
        self._shape, self._load = shape, load
        self._blocks = -(-load.context_length // block_size)
        order = torch.randperm(self._blocks * load.num_sequences)
        tables = order.view(load.num_sequences, -1).tolist()
        num_shared = load.num_shared // block_size
        for number, table in enumerate(tables):
            table[:num_shared] = tables[number % (load.num_families or load.num_sequences)][:num_shared]
        step = StepMetadata.of(
            [load.query_length] * load.num_sequences,
            [load.context_length] * load.num_sequences,
            tables,
            block_size=block_size,
        )
        caches = [
            KVCache(
                num_layers=NUM_LAYERS,
                num_blocks=len(order),
                block_size=block_size,
                num_kv_heads=shape.kv_heads,
                head_dim=shape.head_dim,
                dtype=dtype,
                device="cpu",
            )
            for _ in range(2)
        ]
        for cache in caches:
            for cached in (*cache.keys, *cache.values):
                cached.normal_()
        width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
        qkv = torch.randn(load.num_sequences * load.query_length, width).to(dtype)
        borders = (shape.heads, shape.heads + shape.kv_heads)
        self._heads: Sequence[Tensor] = torch.tensor_split(qkv.view(len(qkv), -1, shape.head_dim), borders, dim=1)
        self.native = CpuPagedAttention(caches[0], step)
        self.reference = PagedAttention(caches[1], step)
        self._gathered = [
            tuple(
                torch.randn(load.num_sequences, shape.kv_heads, load.context_length, shape.head_dim).to(dtype)
                for _ in range(2)
            )
            for _ in range(NUM_LAYERS)
        ]
        newest = load.context_length - load.query_length + torch.arange(load.query_length)
        self._mask = torch.arange(load.context_length) <= newest[:, None]

    def run_native(self, layer: int) -> None:
        self.native(layer, self._heads[0], self._heads[1], self._heads[2], None)

    def run_reference(self, layer: int) -> None:
        self.reference(layer, self._heads[0], self._heads[1], self._heads[2], None)

    def run_gathered(self, layer: int) -> None:
        load = self._load
        query = self._heads[0].view(load.num_sequences, load.query_length, *self._heads[0].shape[1:]).transpose(1, 2)
        key, value = self._gathered[layer]
        whole = load.query_length == load.context_length
        mask = None if whole or load.query_length == 1 else self._mask
        functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=whole, enable_gqa=True)

    @property
    def num_multiplications(self) -> float:
        """Of queries by keys and of weights by values, of one layer."""
        load, shape = self._load, self._shape
        seen = load.query_length * load.context_length - load.query_length * (load.query_length - 1) / 2
        return 2 * seen * load.num_sequences * shape.heads * shape.head_dim

    @property
    def num_bytes(self) -> float:
        """Of the keys and values of one layer."""
        load, shape = self._load, self._shape
        item = self._heads[0].element_size()
        return 2 * load.num_cached * shape.kv_heads * shape.head_dim * item


def medians(contestants: Sequence[Callable[[int], None]], rounds: int) -> list[float]:
    """Seconds per layer of each, the contestants taking turns."""
    times: list[list[float]] = [[] for _ in contestants]
    for round_number in range(rounds + 1):
        for contestant, taken in zip(contestants, times, strict=True):
            start = time.perf_counter()
            for layer in range(NUM_LAYERS):
                contestant(layer)
            if round_number > 0:  # the first warms up
                taken.append((time.perf_counter() - start) / NUM_LAYERS)
    return [statistics.median(taken) for taken in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--isa")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.isa and not choose_isa(options.isa):
        parser.error(f"this machine has no {options.isa}; it has {isa()}")
    print(f"{isa()}, {options.threads} threads, {options.dtype}; milliseconds per layer, median of {options.rounds}")
    print(f"{'step':42} {'ours':>8} {'GFLOP/s':>8} {'GB/s':>6} {'reference':>10} {'ratio':>6} {'sdpa':>8} {'ratio':>6}")
    for shape in SHAPES:
        for load in LOADS:
            step = Step(shape, load, getattr(torch, options.dtype))
            ours, reference, sdpa = medians((step.run_native, step.run_reference, step.run_gathered), options.rounds)
            name = f"{shape.name} {load}"
            print(
                f"{name:42} {ours * 1e3:8.3f} {2 * step.num_multiplications / ours / 1e9:8.0f} "
                f"{step.num_bytes / ours / 1e9:6.1f} {reference * 1e3:10.3f} {reference / ours:6.2f} "
                f"{sdpa * 1e3:8.3f} {sdpa / ours:6.2f}"
            )


if __name__ == "__main__":
    main()
