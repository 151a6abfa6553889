"""One rank's part of a model and of its KV cache, running the steps that rank 0 plans."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Rows
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.decoder import Decoder
from models.layers.attention import KVCache, StepMetadata
from workers.engine.cache_memory import CacheMemory
from workers.engine.messages import Channel, Draw, FromFollower, Shutdown, Step, ToFollower, encode
from workers.engine.sampler import draw_of, is_plain
from workers.engine.scheduler import Plan
from workers.engine.sequence import Sequence


def make_step(plan: Plan, rows: Mapping[Sequence, int] | None = None, *, with_draws: bool = False) -> Step:
    """The plan in numbers, as the ranks need it.

    `rows` is for a plan that was made ahead: the rows in which the step before chooses the sequences' tokens.
    """
    is_plain_step = all(is_plain(entry.sequence) for entry in plan.scheduled if entry.samples)
    token_ids: list[int] = []
    context_lengths: list[int] = []
    for entry in plan.scheduled:
        start = entry.sequence.num_computed_tokens
        if rows is None:
            token_ids += entry.sequence.token_ids[start : start + entry.num_tokens]
        else:
            token_ids.append(~rows[entry.sequence])
        context_lengths.append(start + entry.num_tokens)
    return Step(
        token_ids=token_ids,
        query_lengths=[entry.num_tokens for entry in plan.scheduled],
        context_lengths=context_lengths,
        prompt_lengths=[entry.sequence.num_prompt_tokens for entry in plan.scheduled],
        block_tables=[entry.sequence.block_table for entry in plan.scheduled],
        samples=[entry.samples for entry in plan.scheduled],
        is_plain=is_plain_step,
        draws=_draws(plan, context_lengths) if with_draws and not is_plain_step else [],
    )


def _draws(plan: Plan, context_lengths: list[int]) -> list[Draw]:
    """Those of all rows of a step that decodes alone, or none."""
    draws: list[Draw] = []
    for entry, context_length in zip(plan.scheduled, context_lengths, strict=True):
        # Not by the tokens that are known: of a plan that was made ahead, one is missing.
        position = context_length - entry.sequence.num_prompt_tokens
        if entry.num_tokens > 1 or not entry.samples or (draw := draw_of(entry.sequence, position)) is None:
            return []
        draws.append(draw)
    return draws


@dataclass(frozen=True, slots=True)
class Computed:
    """What a step came to: one row for each sequence that samples. The followers of rank 0 have none."""

    #: [rows, vocab_size] float32. The next step may overwrite it. No columns where several ranks looked for the
    #: likeliest tokens together, and nothing else was asked for.
    logits: Tensor
    #: The likeliest token of every row, or what the step's draws chose; -1 where logits are not finite. int64 [rows]
    #: on the host; waits for the step to end.
    token_ids: Callable[[], Tensor]
    #: Whether these are all that was asked for: then the next step can be run before anybody looks at them.
    is_decided: bool = False


class ModelRunner:
    #: Whether it makes the draws that a step asks for.
    takes_draws = False

    def __init__(
        self, decoder: Decoder, cache: KVCache, device: torch.device, cache_memory: CacheMemory | None = None
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._device = device
        self.cache_memory = cache_memory

    def run(self, step: Step) -> Computed:
        """Compute the step's tokens, and the logits of those that sample."""
        with self.cache_memory.untouched() if self.cache_memory is not None else nullcontext():
            return self._run(step)

    @torch.inference_mode()
    def _run(self, step: Step) -> Computed:
        spans = [
            np.arange(context - query, context)
            for query, context in zip(step.query_lengths, step.context_lengths, strict=True)
        ]
        metadata = StepMetadata.of(
            step.query_lengths,
            step.context_lengths,
            step.block_tables,
            block_size=self._cache.block_size,
            device=self._device,
        )
        samples = np.asarray(step.samples, dtype=bool)
        # Where every token is sampled from, none is left out after the last attention.
        is_whole = len(step.token_ids) == samples.sum()
        hidden = self._decoder(
            self._tensor(np.asarray(step.token_ids, dtype=np.int64)),
            self._tensor(np.concatenate(spans)),
            self._decoder.kernels.attention(self._cache, metadata),
            self._tensor(np.repeat(step.prompt_lengths, step.query_lengths)),
            None if is_whole else self._tensor((np.cumsum(step.query_lengths) - 1)[samples]),
        )
        if not any(step.samples):
            return Computed(torch.empty(0, self._decoder.config.vocab_size), lambda: torch.empty(0, dtype=torch.int64))
        if step.is_plain and self._decoder.sharding.world_size > 1:
            likeliest = self._decoder.greatest(hidden)
            return Computed(torch.empty(len(likeliest), 0), lambda: likeliest)
        logits = self._decoder.logits(hidden)
        return Computed(logits, partial(self._decoder.kernels.greatest, logits))

    def _tensor(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self._device)


class LeadingRunner:
    """Rank 0's runner: lets the followers run every step that it runs."""

    def __init__(self, runner: ModelRunner, followers: Rows[Channel[FromFollower]]) -> None:
        self._runner = runner
        self._followers = followers

    def run(self, step: Step) -> Computed:
        """As ModelRunner's. Raises ChannelClosed if a follower is gone."""
        if self._followers:
            encoded = encode(step)
            for follower in self._followers:
                follower.send_encoded(encoded)
        return self._runner.run(step)


def follow(runner: ModelRunner, leader: Channel[ToFollower]) -> None:
    """Run the steps of rank 0 until it says to shut down. Raises ChannelClosed if it is gone."""
    while not isinstance(message := leader.receive(), Shutdown):
        assert isinstance(message, Step), message
        runner.run(message)
