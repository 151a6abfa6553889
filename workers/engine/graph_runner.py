"""Decoding steps recorded as CUDA graphs: what takes the host milliseconds to launch is then launched as one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from models.config import ModelConfig
from models.decoder import Decoder
from models.layers.attention import KVCache
from models.rope import RopeType
from workers.engine.decode_inputs import DecodeInputs
from workers.engine.device_memory import StreamMark, host_memory
from workers.engine.messages import Step
from workers.engine.model_runner import Computed, ModelRunner
from workers.engine.sampler import MIN_TEMPERATURE, draw

#: Logits [size, vocab_size] float32, and the greatest of each row [size] int64 (-1 where one is not finite).
Decoded = tuple[Tensor, Tensor]


class Recorder(Protocol):
    """Makes something repeatable out of work on memory that stays in its place."""

    def record(self, work: Callable[[], Decoded]) -> Callable[[], Decoded]:
        """What does the same work again, and gives what it computed, in memory that each repetition takes again."""


class CudaRecorder:
    """Graphs that share one pool of memory: they are replayed one at a time, and none needs what another left."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def record(self, work: Callable[[], Decoded]) -> Callable[[], Decoded]:
        # First as it is: Triton compiles, and cuBLAS takes its memory, which neither can while a graph is recorded.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            decoded = work()

        def replay() -> Decoded:
            graph.replay()
            return decoded

        return replay


class _ChosenTokens:
    """What a recorded step chose, on its way to the host."""

    def __init__(self, max_num_sequences: int, device: torch.device) -> None:
        self._token_ids = host_memory((max_num_sequences,), torch.int64, device)
        self._arrived = StreamMark(device)

    def fetch(self, token_ids: Tensor) -> Callable[[], Tensor]:
        """Start on the way. What is returned waits for [rows] int64 on the host; the next call takes their place."""
        self._token_ids[: len(token_ids)].copy_(token_ids, non_blocking=True)
        self._arrived.set()
        return partial(self._wait, len(token_ids))

    def _wait(self, num: int) -> Tensor:
        self._arrived.wait()
        return self._token_ids[:num]


class GraphRunner(ModelRunner):
    """Runs a step in which every sequence decodes by what was recorded for the next larger number of sequences.

    All other steps run as ModelRunner's. For one rank, with kernels that never wait for the device and know padding
    (`TritonKernels`); see `can_record`.
    """

    takes_draws = True

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        device: torch.device,
        *,
        max_num_sequences: int,
        recorder: Recorder,
    ) -> None:
        """Records at once. Raises torch.OutOfMemoryError where the device has no room for it."""
        super().__init__(decoder, cache, device)
        longest = min(-(-decoder.config.context_length // cache.block_size), cache.num_blocks)
        self._inputs = DecodeInputs(max_num_sequences, longest, cache.block_size, device)
        #: What the last recorded step chose, by row, for the next: it stays on the device.
        self._chosen = torch.zeros(max_num_sequences, dtype=torch.int64, device=device)
        #: Of the last two recorded steps, the later one last: it may be started before the other's is looked at.
        self._on_the_way = deque(_ChosenTokens(max_num_sequences, device) for _ in range(2))
        with torch.inference_mode():
            # The largest first, so that the smaller ones find the memory that they need in the pool.
            self._recorded = {
                size: recorder.record(partial(self._decode, size)) for size in reversed(padded_sizes(max_num_sequences))
            }
        self._sizes = sorted(self._recorded)

    @torch.inference_mode()
    def run(self, step: Step) -> Computed:
        """As ModelRunner's, but returns while the device computes."""
        if not self._is_recorded(step):
            return super().run(step)
        num = len(step.token_ids)
        size = next(size for size in self._sizes if size >= num)
        self._inputs.fill(step, size)
        logits, greatest = (rows[:num] for rows in self._recorded[size]())
        chosen = self._draw(logits, greatest) if step.draws else greatest
        self._on_the_way.rotate(-1)
        return Computed(logits, self._on_the_way[-1].fetch(chosen), is_decided=step.is_plain or bool(step.draws))

    def _draw(self, logits: Tensor, greatest: Tensor) -> Tensor:
        """Token ids [rows], for the next step, too."""
        temperatures, keys = self._inputs.draws(len(logits))
        drawn = draw(logits, temperatures.clamp(min=MIN_TEMPERATURE), keys)
        chosen = torch.where((temperatures > 0) & (greatest >= 0), drawn, greatest)
        self._chosen[: len(chosen)].copy_(chosen.clamp(min=0))
        return chosen

    def _is_recorded(self, step: Step) -> bool:
        num = len(step.token_ids)
        return num == len(step.query_lengths) and all(step.samples) and num <= self._sizes[-1]

    def _decode(self, size: int) -> Decoded:
        """A step of `size` rows. Every number that it does not read from the device is fixed by `size`."""
        given = self._inputs.token_ids(size)
        token_ids = torch.where(given < 0, self._chosen[(~given).clamp(min=0)], given)
        attention = self._decoder.kernels.attention(self._cache, self._inputs.metadata(size))
        hidden = self._decoder(token_ids, self._inputs.positions(size), attention)
        logits = self._decoder.logits(hidden)
        greatest = self._decoder.kernels.greatest(logits)
        # A row that is not finite has no token, and ends as soon as anybody looks: any will do until then.
        self._chosen[:size].copy_(greatest.clamp(min=0))
        return logits, greatest


def padded_sizes(max_num_sequences: int) -> list[int]:
    """Numbers of sequences that steps are recorded for: few enough to record, and near enough to waste little."""
    return [size for size in (1, 2, 4, *range(8, max_num_sequences, 8)) if size < max_num_sequences] + [
        max_num_sequences
    ]


def can_record(config: ModelConfig) -> bool:
    """Whether the decoder's steps read nothing from the host: a dynamic rope does."""
    return config.rope.type is not RopeType.DYNAMIC
