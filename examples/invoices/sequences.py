"""Examples as token ids, packed into tensors as the decoder takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from examples.invoices.generate import Example
from examples.invoices.tokenizer import END, render_prompt
from models.decoder import Decoder
from models.layers.attention import CausalAttention

#: Target of positions that are no part of an answer: they count neither for the loss nor for a measurement.
IGNORED = -100


def encode(tokenizer: Tokenizer, example: Example) -> tuple[list[int], list[int]]:
    """Prompt and answer of an example in token ids, the answer with its end."""
    prompt = tokenizer.encode(render_prompt(example.sentence)).ids
    return prompt, tokenizer.encode(example.invoice.answer + END).ids


def pack(pairs: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """Token ids and targets, each [num_sequences, length], padded on the right; the target is the next token."""
    length = max(len(prompt) + len(answer) for prompt, answer in pairs)
    token_ids = torch.zeros(len(pairs), length, dtype=torch.int64)
    targets = torch.full((len(pairs), length), IGNORED)
    for row, (prompt, answer) in enumerate(pairs):
        end = len(prompt) + len(answer)
        token_ids[row, :end] = torch.tensor(prompt + answer)
        targets[row, len(prompt) - 1 : end - 1] = torch.tensor(answer)
    return token_ids, targets


def hidden_states(decoder: Decoder, token_ids: Tensor) -> Tensor:
    """[num_sequences, length] -> [num_sequences, length, hidden]; padding on the right changes nothing before it."""
    num_sequences, length = token_ids.shape
    positions = torch.arange(length).repeat(num_sequences)
    hidden: Tensor = decoder(token_ids.flatten(), positions, CausalAttention(num_sequences, length))
    return hidden.view(num_sequences, length, -1)
