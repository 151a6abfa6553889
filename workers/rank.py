"""One shard process of a group, forked by `workers.fork_server`.

It meets the other ranks, loads its part of the model, and makes its part of the KV cache. Rank 0 then runs the engine
and the others follow its steps. Whatever goes wrong is told to the parent, and ends the process: the parent replaces
all ranks together.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

import structlog
import torch

from models.checkpoint import load_decoder, resolve_dtype
from models.config import ModelConfig
from models.errors import ModelError, UnsupportedModel
from models.kernels.cpu.kernels import cpu_kernels
from models.kernels.gpu.choice import gpu_kernels
from models.kernels.interface import PLAIN, Kernels
from models.layers.attention import KVCache
from pipeline.processes import end_with_parent_thread, name_process
from pipeline.telemetry.logs import configure_rank_logging
from pipeline.tokenization import Tokenizer, TokenizerError
from workers.communicator import Communicator, CommunicatorError, connect
from workers.engine.block_manager import BlockManager
from workers.engine.cache_memory import CacheMemory
from workers.engine.cache_size import CacheSizeError, num_blocks_possible
from workers.engine.engine import EngineCore
from workers.engine.graph_runner import CudaRecorder, GraphRunner, can_record
from workers.engine.loop import WarmUpError, run_loop, warm_up
from workers.engine.messages import (
    Allocate,
    Capacity,
    Channel,
    ChannelClosed,
    Failed,
    Fork,
    FromFollower,
    Ready,
    Shutdown,
    Start,
    ToFollower,
    ToRank,
)
from workers.engine.model_runner import LeadingRunner, ModelRunner, follow
from workers.engine.options import EngineOptions
from workers.engine.scheduler import Scheduler

log = structlog.get_logger(__name__)

#: Errors whose message is meant for people: it names the file, the field or the setting.
_EXPLAINED = (ModelError, TokenizerError, CacheSizeError, WarmUpError)
#: Time for the ranks to meet and for a collective; more than a step deadline, so that the parent's acts first.
_LEAST_TIMEOUT = 120.0


def run(fork: Fork, server_pid: int, parent: int, *peers: int) -> NoReturn:
    """Be the rank, in the process that the fork server has just forked for it. Returns to nobody.

    The other numbers are descriptors of pipes: to the parent; rank 0's to the others, or another rank's to rank 0.
    """
    end_with_parent_thread(signal.SIGKILL)
    if os.getppid() != server_pid:  # it ended before the line above
        os._exit(1)
    os.setsid()
    name_process(f"rank {fork.rank}")
    configure_rank_logging(fork.rank, fork.log_level, fork.log_format)
    faulthandler.enable()
    # The parent asks for the stacks of a rank that hangs.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    channel: Channel[ToRank] = Channel(Connection(parent), ToRank)
    try:
        if fork.cores:
            os.sched_setaffinity(0, fork.cores)
        _serve(fork.rank, channel, [Connection(peer) for peer in peers])
    except _EXPLAINED as error:
        _fail(channel, str(error))
    except (CommunicatorError, ChannelClosed) as error:
        _fail(channel, str(error) or "another rank is gone", is_consequence=True)
    except Exception as error:  # whatever it is, the parent must hear of it
        log.error("the rank failed", exc_info=error)
        _fail(channel, f"{type(error).__name__}: {_first_line(error)}")
    # Interpreter shutdown could wait for threads of torch that wait for a rank that is gone.
    _exit(0)


def _serve(rank: int, parent: Channel[ToRank], peers: list[Connection]) -> None:
    start = parent.receive()
    if isinstance(start, Shutdown):
        return
    assert isinstance(start, Start), start
    options = start.options
    torch.set_num_threads(start.num_threads)
    folder = Path(options.model_path)
    config = ModelConfig.from_pretrained(folder)
    device = _device(options, rank)
    timeout = max(_LEAST_TIMEOUT, 2 * options.step_seconds)
    communicator = connect(
        start.rendezvous, rank, options.tp, device=device, timeout=timeout, spins=start.has_own_cores
    )
    if rank == 0:
        _lead(options, config, device, communicator, parent, [Channel(peer, FromFollower) for peer in peers])
    else:
        (leader,) = peers
        _follow(options, config, device, communicator, Channel(leader, ToFollower))


def _lead(
    options: EngineOptions,
    config: ModelConfig,
    device: torch.device,
    communicator: Communicator,
    parent: Channel[ToRank],
    followers: list[Channel[FromFollower]],
) -> None:
    with ThreadPoolExecutor(1) as beside:  # a vocabulary takes as long to read as a small model's weights
        loading = beside.submit(Tokenizer.load, Path(options.model_path))
        shard = _Shard(options, config, device, communicator)
        tokenizer = loading.result()
    num_blocks = min([shard.num_blocks_possible, *(follower.receive().num_blocks for follower in followers)])
    for follower in followers:
        follower.send(Allocate(num_blocks=num_blocks))
    runner = shard.runner(num_blocks)
    memory = runner.cache_memory
    core = EngineCore(
        run_model=LeadingRunner(runner, followers).run,
        scheduler=Scheduler(
            BlockManager(num_blocks, options.block_size, memory.num_blocks if memory is not None else None),
            max_num_sequences=options.max_num_sequences,
            step_tokens=options.step_tokens,
        ),
        tokenizer=tokenizer,
        eos_token_ids={*config.eos_token_ids, *tokenizer.eos_token_ids},
        prefix_salt=config.prefix_salt,
        with_draws=runner.takes_draws,
    )
    token_seconds = warm_up(core, config.context_length)
    if memory is not None:
        memory.start()
    parent.send(
        Ready(
            vocab_size=config.vocab_size,
            context_length=config.context_length,
            num_kv_tokens=num_blocks * options.block_size,
            full_step_seconds=token_seconds * options.step_tokens,
            dtype=str(shard.dtype).removeprefix("torch."),
        )
    )
    run_loop(core, parent)
    for follower in followers:
        follower.send(Shutdown())


def _follow(
    options: EngineOptions,
    config: ModelConfig,
    device: torch.device,
    communicator: Communicator,
    leader: Channel[ToFollower],
) -> None:
    shard = _Shard(options, config, device, communicator)
    leader.send(Capacity(num_blocks=shard.num_blocks_possible))
    allocate = leader.receive()
    assert isinstance(allocate, Allocate), allocate
    runner = shard.runner(allocate.num_blocks)
    if runner.cache_memory is not None:
        runner.cache_memory.start()
    follow(runner, leader)


class _Shard:
    """This rank's part of the model, and the room that is left beside it."""

    def __init__(
        self, options: EngineOptions, config: ModelConfig, device: torch.device, communicator: Communicator
    ) -> None:
        self._options = options
        self._device = device
        self.dtype = resolve_dtype(options.dtype, config, device)
        self._decoder = load_decoder(
            Path(options.model_path),
            config,
            communicator=communicator,
            dtype=self.dtype,
            device=device,
            kernels=_kernels(options, self.dtype),
        )
        self.num_blocks_possible = num_blocks_possible(options, config, self._decoder.sharding, self.dtype, device)

    def runner(self, num_blocks: int) -> ModelRunner:
        """With a KV cache of so many blocks. Raises CacheSizeError where steps can't be recorded beside it."""
        config = self._decoder.config
        cache = KVCache(
            num_layers=config.num_layers,
            num_blocks=num_blocks,
            block_size=self._options.block_size,
            num_kv_heads=len(self._decoder.sharding.kv_heads),
            head_dim=config.head_dim,
            dtype=self.dtype,
            device=self._device,
        )
        # With several ranks, NCCL's collectives would be recorded, too: until that was seen to work, it is not done.
        is_recorded = self._options.tp == 1 and self._decoder.kernels is not PLAIN and can_record(config)
        if self._device.type == "cpu":
            return ModelRunner(self._decoder, cache, self._device, CacheMemory(cache))
        if not is_recorded:
            return ModelRunner(self._decoder, cache, self._device)
        limit = self._options.max_num_sequences
        try:
            return GraphRunner(self._decoder, cache, self._device, max_num_sequences=limit, recorder=CudaRecorder())
        except torch.OutOfMemoryError as error:
            raise CacheSizeError(
                f"The GPU has no memory left to record steps of up to {limit} sequences beside a KV cache of "
                f"{num_blocks * self._options.block_size} tokens. Lower kv_cache_tokens or max_num_sequences."
            ) from error


def _kernels(options: EngineOptions, dtype: torch.dtype) -> Kernels:
    """The fast ones where there are any. Raises UnsupportedModel where int8 is asked for, which only they can do."""
    is_quantised = options.quantize == "int8"
    on_cpu = options.device == "cpu"
    kernels = cpu_kernels(dtype, is_quantised=is_quantised) if on_cpu else gpu_kernels(dtype)
    if kernels is None and is_quantised:
        raise UnsupportedModel(
            f"int8 weights need the native CPU kernels and the dtype float32 or bfloat16. The dtype is {dtype}; "
            "`ryzanstein doctor` says whether the kernels were built. Without them, leave out --quantize."
        )
    return kernels or PLAIN


class _DeviceError(ModelError):
    """There are fewer GPUs than ranks."""


def _device(options: EngineOptions, rank: int) -> torch.device:
    if options.device == "cpu":
        return torch.device("cpu")
    if (num_devices := torch.cuda.device_count()) < options.tp:
        raise _DeviceError(
            f"tensor parallelism {options.tp} on cuda needs {options.tp} GPUs, but {num_devices} are visible; "
            "choose a smaller one, look at CUDA_VISIBLE_DEVICES, or use the device cpu."
        )
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    return device


def _fail(parent: Channel[ToRank], message: str, *, is_consequence: bool = False) -> NoReturn:
    with suppress(ChannelClosed):  # the parent is gone, and with it whoever wanted to know
        parent.send(Failed(message=message, is_consequence=is_consequence))
    _exit(1)


def _exit(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"
