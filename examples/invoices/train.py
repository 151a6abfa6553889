"""Trains the invoice reader from nothing and writes its checkpoint: under 30 minutes on 2 cores.

python -m examples.invoices.train --folder examples/invoices/invoice-reader
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from examples.invoices.checkpoint import save_weights, write_config
from examples.invoices.generate import Example, Side, examples
from examples.invoices.reading import FOLDER, load, measure
from examples.invoices.tokenizer import END, render_prompt, save_tokenizer, train_tokenizer
from models.config import ModelConfig
from models.decoder import Decoder
from models.layers.attention import CausalAttention

#: Target of positions that are no part of an answer: they add nothing to the loss.
IGNORED = -100
TOKENIZER_EXAMPLES = 10_000
#: Batches that are sorted by length together, so that little of a batch is padding.
BATCHES_PER_POOL = 16
HELD_OUT_EXAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the weights."""

    seed: int = 0
    num_steps: int = 1200
    batch_size: int = 64
    #: Reached after the warm-up, from where it falls to 0 in a straight line.
    peak_learning_rate: float = 1.5e-3
    warmup_steps: int = 50
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0

    @property
    def num_examples(self) -> int:
        """Training examples that are drawn, in whole pools: the first so many of `examples(Side.TRAINING)`."""
        num_pools = -(-self.num_steps // BATCHES_PER_POOL)
        return max(TOKENIZER_EXAMPLES, num_pools * BATCHES_PER_POOL * self.batch_size)

    def learning_rate(self, step: int) -> float:
        """Of a step, counted from 0."""
        return self.peak_learning_rate * min(1.0, (step + 1) / self.warmup_steps) * (1 - step / self.num_steps)


def train(folder: Path, recipe: Recipe) -> None:
    """Writes a whole checkpoint into a folder, and what was measured of it into its training.json."""
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    training = examples(Side.TRAINING, seed=recipe.seed)
    texts = (text for e in islice(training, TOKENIZER_EXAMPLES) for text in (e.sentence, e.invoice.answer))
    tokenizer = train_tokenizer(texts)
    save_tokenizer(tokenizer, folder)
    write_config(folder, tokenizer)
    decoder = Decoder(ModelConfig.from_pretrained(folder))
    decoder.initialise(generator=torch.Generator().manual_seed(recipe.seed))
    fit(decoder, tokenizer, recipe)
    save_weights(decoder, folder)
    minutes = (time.monotonic() - started) / 60

    decoder, tokenizer = load(folder)  # what is measured is what was written
    exact = measure(decoder, tokenizer, list(islice(examples(Side.HELD_OUT, seed=0), HELD_OUT_EXAMPLES)))
    print(f"{exact:.2%} of {HELD_OUT_EXAMPLES} unseen sentences read exactly, after {minutes:.0f} minutes of training")
    record = {**asdict(recipe), "num_examples": recipe.num_examples, "held_out_exact": exact}
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def fit(decoder: Decoder, tokenizer: Tokenizer, recipe: Recipe) -> None:
    """Trains a decoder in place, in float32 with bfloat16 products."""
    optimiser = torch.optim.AdamW(decoder.parameters(), betas=(0.9, 0.95), weight_decay=recipe.weight_decay)
    started = time.monotonic()
    for step, batch in enumerate(islice(batches(tokenizer, recipe), recipe.num_steps)):
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate(step)
        loss = answer_loss(decoder, *pack(batch))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), recipe.max_gradient_norm)
        optimiser.step()
        if (step + 1) % 20 == 0:
            print(f"step {step + 1:5d}  loss {loss.item():.4f}  {time.monotonic() - started:6.0f} s", flush=True)


def batches(tokenizer: Tokenizer, recipe: Recipe) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Endless batches of (prompt, answer) in token ids; the sentences of a batch are about equally long."""
    training = examples(Side.TRAINING, seed=recipe.seed)
    rng = random.Random(recipe.seed)
    while True:
        pool = [encode(tokenizer, example) for example in islice(training, recipe.batch_size * BATCHES_PER_POOL)]
        pool.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        sorted_batches = [pool[at : at + recipe.batch_size] for at in range(0, len(pool), recipe.batch_size)]
        rng.shuffle(sorted_batches)
        yield from sorted_batches


def encode(tokenizer: Tokenizer, example: Example) -> tuple[list[int], list[int]]:
    """Prompt and answer of an example in token ids, the answer with its end."""
    prompt = tokenizer.encode(render_prompt(example.sentence)).ids
    return prompt, tokenizer.encode(example.invoice.answer + END).ids


def pack(batch: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """Token ids and targets, each [num_sequences, length], padded on the right; the target is the next token."""
    length = max(len(prompt) + len(answer) for prompt, answer in batch)
    token_ids = torch.zeros(len(batch), length, dtype=torch.int64)
    targets = torch.full((len(batch), length), IGNORED)
    for row, (prompt, answer) in enumerate(batch):
        end = len(prompt) + len(answer)
        token_ids[row, :end] = torch.tensor(prompt + answer)
        targets[row, len(prompt) - 1 : end - 1] = torch.tensor(answer)
    return token_ids, targets


def answer_loss(decoder: Decoder, token_ids: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over the tokens of the answers."""
    num_sequences, length = token_ids.shape
    positions = torch.arange(length).repeat(num_sequences)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = decoder(token_ids.flatten(), positions, CausalAttention(num_sequences, length))
        answered = targets.flatten() != IGNORED
        logits = decoder.logits(hidden[answered])
    return functional.cross_entropy(logits.float(), targets.flatten()[answered])


def main() -> None:
    """Trains the invoice reader."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=Recipe.num_steps, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="(default: %(default)s)")
    arguments = parser.parse_args()
    train(arguments.folder, Recipe(num_steps=arguments.steps, seed=arguments.seed))


if __name__ == "__main__":
    main()
