"""Decoding steps recorded as CUDA graphs: what takes the host milliseconds to launch is then launched as one."""

from __future__ import annotations

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
from workers.engine.messages import Step
from workers.engine.model_runner import ModelRunner

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


class GraphRunner(ModelRunner):
    """Runs a step in which every sequence decodes by what was recorded for the next larger number of sequences.

    All other steps run as ModelRunner's. For one rank, with kernels that never wait for the device and know padding
    (`TritonKernels`); see `can_record`.
    """

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
        is_cuda = device.type == "cuda"
        self._greatest = torch.zeros(max_num_sequences, dtype=torch.int64, pin_memory=is_cuda)
        self._ended = torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]
        #: What `run` returned last, if it was recorded.
        self._logits: Tensor | None = None
        with torch.inference_mode():
            # The largest first, so that the smaller ones find the memory that they need in the pool.
            self._recorded = {
                size: recorder.record(partial(self._decode, size)) for size in reversed(padded_sizes(max_num_sequences))
            }
        self._sizes = sorted(self._recorded)

    @torch.inference_mode()
    def run(self, step: Step) -> Tensor:
        """As ModelRunner's; the logits of a recorded step are overwritten by the next."""
        self._logits = None
        num = len(step.token_ids)
        if num != len(step.query_lengths) or not all(step.samples) or num > self._sizes[-1]:
            return super().run(step)
        self._wait()
        size = next(size for size in self._sizes if size >= num)
        self._inputs.fill(step, size)
        logits, greatest = self._recorded[size]()
        self._greatest[:size].copy_(greatest, non_blocking=True)
        if self._ended is not None:
            self._ended.record()
        self._logits = logits[:num]
        return self._logits

    def greatest(self, logits: Tensor) -> Tensor:
        """As `Kernels.greatest`; on the host, and already computed, for what `run` returned last."""
        if logits is not self._logits:
            return super().greatest(logits)
        self._wait()
        return self._greatest[: len(logits)]

    def _wait(self) -> None:
        """Until the last recorded step has ended: only then are its inputs read and its results here."""
        if self._ended is not None:
            self._ended.synchronize()

    def _decode(self, size: int) -> Decoded:
        """A step of `size` rows. Every number that it does not read from the device is fixed by `size`."""
        attention = self._decoder.kernels.attention(self._cache, self._inputs.metadata(size))
        hidden = self._decoder(self._inputs.token_ids(size), self._inputs.positions(size), attention)
        logits = self._decoder.logits(hidden)
        return logits, self._decoder.kernels.greatest(logits)


def padded_sizes(max_num_sequences: int) -> list[int]:
    """Numbers of sequences that steps are recorded for: few enough to record, and near enough to waste little."""
    return [size for size in (1, 2, 4, *range(8, max_num_sequences, 8)) if size < max_num_sequences] + [
        max_num_sequences
    ]


def can_record(config: ModelConfig) -> bool:
    """Whether the decoder's steps read nothing from the host: a dynamic rope does."""
    return config.rope.type is not RopeType.DYNAMIC
