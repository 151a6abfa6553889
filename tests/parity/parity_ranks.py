"""What one rank does in the parity tests: load its part of every model, and answer through the paged cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from parity_cases import NUM_NEW_TOKENS, Answer, Reference
from torch import Tensor

from models.checkpoint import load_decoder
from models.config import ModelConfig
from models.decoder import Decoder
from models.kernels.cpu.kernels import cpu_kernels
from models.kernels.interface import PLAIN
from models.layers.attention import CausalAttention, KVCache, StepMetadata
from models.sharding import Communicator
from workers.communicator import connect
from workers.torch_communicator import TorchCommunicator


def run_rank(
    rendezvous: str, rank: int, world_size: int, references: Sequence[Reference], with_kernels: bool, output: Path
) -> None:
    """Main of a spawned rank; rank 0 writes what all of them computed."""
    torch.set_num_threads(1)
    communicator = connect(rendezvous, rank, world_size, timeout=60.0)
    answers = {reference.case.name: answer(reference, communicator, with_kernels) for reference in references}
    if rank == 0:
        torch.save(
            {
                name: [(each.prompt_logits, each.token_ids, each.logits) for each in of_case]
                for name, of_case in answers.items()
            },
            output,
        )
    if isinstance(communicator, TorchCommunicator):
        communicator.close()  # Gloo's threads must not outlive it


@torch.inference_mode()
def answer(reference: Reference, communicator: Communicator, with_kernels: bool) -> list[Answer]:
    """On the other ranks the logits are empty."""
    config = ModelConfig.from_pretrained(reference.folder)
    kernels = cpu_kernels(torch.float32) if with_kernels else PLAIN
    decoder = load_decoder(reference.folder, config, communicator=communicator, kernels=kernels)
    prompt_logits = [whole_logits(decoder, prompt) for prompt in reference.prompts]
    token_ids, logits = generate(
        decoder,
        communicator,
        reference.prompts,
        block_size=reference.case.block_size,
        chunk=reference.case.chunk,
    )
    return [Answer(*each) for each in zip(prompt_logits, token_ids, logits, strict=True)]


def whole_logits(decoder: Decoder, prompt: Sequence[int]) -> Tensor:
    """[tokens, vocab_size], in one forward pass without a cache."""
    length = len(prompt)
    hidden = decoder(
        torch.tensor(prompt),
        torch.arange(length),
        CausalAttention(num_sequences=1, length=length),
        torch.full((length,), length),
    )
    return decoder.logits(hidden).clone()  # the next step takes its place


def generate(
    decoder: Decoder, communicator: Communicator, prompts: Sequence[Sequence[int]], *, block_size: int, chunk: int
) -> tuple[list[list[int]], list[Tensor]]:
    """Greedy, all prompts at once, each prompt in chunks, so that steps mix prefill and decoding."""
    sequences = [list(prompt) for prompt in prompts]
    num_computed = [0] * len(prompts)
    tables, cache = _scattered_blocks(decoder, [len(p) + NUM_NEW_TOKENS for p in prompts], block_size)
    logits: list[list[Tensor]] = [[] for _ in prompts]
    while running := [i for i, p in enumerate(prompts) if len(sequences[i]) < len(p) + NUM_NEW_TOKENS]:
        lengths = [min(chunk, len(sequences[i]) - num_computed[i]) for i in running]
        token_ids, positions, prompt_lengths = [], [], []
        for i, length in zip(running, lengths, strict=True):
            at = torch.arange(num_computed[i], num_computed[i] + length)
            token_ids.append(torch.tensor(sequences[i])[at])
            positions.append(at)
            prompt_lengths.append(torch.full((length,), len(prompts[i])))
            num_computed[i] += length
        step = StepMetadata.of(
            lengths, [num_computed[i] for i in running], [tables[i] for i in running], block_size=block_size
        )
        hidden = decoder(
            torch.cat(token_ids),
            torch.cat(positions),
            decoder.kernels.attention(cache, step),
            torch.cat(prompt_lengths),
        )
        caught_up = [num_computed[i] == len(sequences[i]) for i in running]
        last = torch.tensor(lengths).cumsum(0) - 1
        step_logits = decoder.logits(hidden[last[torch.tensor(caught_up)]]).clone()
        ready = [i for i, at_end in zip(running, caught_up, strict=True) if at_end]
        new = step_logits.argmax(-1) if communicator.rank == 0 else torch.empty(len(ready), dtype=torch.int64)
        for row, (i, token_id) in enumerate(zip(ready, communicator.broadcast(new).tolist(), strict=True)):
            sequences[i].append(token_id)
            logits[i].append(step_logits[row : row + 1])
    new_ids = [sequence[len(prompt) :] for sequence, prompt in zip(sequences, prompts, strict=True)]
    return new_ids, [torch.cat(rows) for rows in logits]


def _scattered_blocks(decoder: Decoder, lengths: Sequence[int], block_size: int) -> tuple[list[list[int]], KVCache]:
    """Block tables in no order, and a cache full of NaN: nothing may be read that was not written."""
    widths = [-(-length // block_size) for length in lengths]
    num_blocks = sum(widths) + 1
    cache = KVCache(
        num_layers=decoder.config.num_layers,
        num_blocks=num_blocks,
        block_size=block_size,
        num_kv_heads=len(decoder.sharding.kv_heads),
        head_dim=decoder.config.head_dim,
        dtype=torch.float32,
        device="cpu",
    )
    for cached in (*cache.keys, *cache.values):
        cached.fill_(float("nan"))
    order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(0))
    return [table.tolist() for table in torch.split(order[: sum(widths)], widths)], cache
