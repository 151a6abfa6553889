from __future__ import annotations

import time
from pathlib import Path

import torch

from models.layers.attention import KVCache
from workers.engine.cache_memory import CacheMemory

NUM_BLOCKS = 256


def make_cache() -> KVCache:
    """64 MiB."""
    return KVCache(
        num_layers=2,
        num_blocks=NUM_BLOCKS,
        block_size=16,
        num_kv_heads=8,
        head_dim=256,
        dtype=torch.float32,
        device="cpu",
    )


def resident_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def wait_until_populated(memory: CacheMemory) -> None:
    deadline = time.monotonic() + 30
    while memory.num_blocks() < NUM_BLOCKS:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_idle_rank_gets_the_memory_of_its_cache_and_what_it_holds_stays() -> None:
    cache = make_cache()
    cache.keys[1][3] = 7.0
    before = resident_bytes()
    memory = CacheMemory(cache)
    memory.start()
    wait_until_populated(memory)
    assert resident_bytes() - before > 0.8 * sum(tensor.nbytes for tensor in (*cache.keys, *cache.values))
    assert (cache.keys[1][3] == 7.0).all()
    assert not cache.values[1].any()


def test_nothing_is_got_while_a_step_runs() -> None:
    memory = CacheMemory(make_cache())
    with memory.untouched():
        memory.start()
        time.sleep(0.3)
        assert memory.num_blocks() == 0
    wait_until_populated(memory)
