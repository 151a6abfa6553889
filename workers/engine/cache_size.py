"""How many blocks of KV cache a rank has room for."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from models.config import ModelConfig
from models.layers.attention import KVCache
from models.sharding import Sharding
from workers.engine.graph_runner import padded_sizes
from workers.engine.options import EngineOptions

#: Of the memory that is free once the weights are loaded; the rest is for the activations of a step.
CUDA_SHARE = 0.9
#: Of CUDA's own for each recorded step: a few kilobytes for each of its kernels, in pieces of megabytes.
_GRAPH_BYTES = 16 * 2**20
#: Of the memory that is available to the host's processes, for all ranks together: others live there too.
CPU_SHARE = 0.25


class CacheSizeError(Exception):
    """The KV cache does not fit into memory."""


def num_blocks_possible(
    options: EngineOptions, config: ModelConfig, sharding: Sharding, dtype: torch.dtype, device: torch.device
) -> int:
    """Blocks for this rank: as many as the options say, or else as fit and could ever be used. At least 1.

    Raises CacheSizeError where memory is too small.
    """
    block_bytes = options.block_size * KVCache.bytes_per_token(
        num_layers=config.num_layers,
        num_kv_heads=len(sharding.kv_heads),
        head_dim=config.head_dim,
        dtype=dtype,
    )
    available = available_bytes(device)
    if device.type == "cuda":
        available = max(0, available - _recording_bytes(options, config, dtype))
    if options.kv_cache_tokens:
        num_blocks = -(-options.kv_cache_tokens // options.block_size)
        num_ranks_here = 1 if device.type == "cuda" else sharding.world_size
        if num_blocks * block_bytes * num_ranks_here > available:
            raise CacheSizeError(
                f"kv_cache_tokens is {options.kv_cache_tokens}, which takes {_gib(num_blocks * block_bytes)} GiB "
                f"per rank, but {_gib(available / num_ranks_here)} GiB are free. "
                "Lower it, or set it to 0 to use what is there."
            )
        return num_blocks
    share = CUDA_SHARE if device.type == "cuda" else CPU_SHARE / sharding.world_size
    num_usable = options.max_num_sequences * -(-config.context_length // options.block_size)
    num_blocks = min(int(available * share) // block_bytes, num_usable)
    if num_blocks < 1:
        raise CacheSizeError(
            f"{_gib(available)} GiB of memory are free, of which the KV cache may take {share:.0%}; "
            f"one block of {options.block_size} tokens takes {_gib(block_bytes)} GiB."
        )
    return num_blocks


def _recording_bytes(options: EngineOptions, config: ModelConfig, dtype: torch.dtype) -> int:
    """What steps that are recorded after the cache was made keep: graphs, and logits as they are and in float32."""
    logits = options.max_num_sequences * config.vocab_size * (dtype.itemsize + torch.float32.itemsize)
    return logits + len(padded_sizes(options.max_num_sequences)) * _GRAPH_BYTES


def available_bytes(device: torch.device) -> int:
    """Free memory of the device; on a CPU what new processes can have, within the limit of the container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = int(psutil.virtual_memory().available)
    limit, used = _cgroup_number("memory.max"), _cgroup_number("memory.current")
    return available if limit is None or used is None else max(0, min(available, limit - used))


def _cgroup_number(name: str) -> int | None:
    """A number of the container's own control group (version 2); None where there is none, or no limit."""
    try:
        text = Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f}"
