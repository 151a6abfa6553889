"""Trains the invoice reader from nothing and writes its checkpoint: about half an hour on 2 cores.

python -m examples.invoices.train --folder examples/invoices/invoice-reader
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import deque
from collections.abc import Iterator
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
from examples.invoices.sequences import IGNORED, encode, hidden_states, pack
from examples.invoices.tokenizer import save_tokenizer, train_tokenizer
from models.config import ModelConfig
from models.decoder import Decoder

TOKENIZER_EXAMPLES = 10_000
#: Batches that are sorted by length together, so that little of a batch is padding.
BATCHES_PER_POOL = 16
HELD_OUT_EXAMPLES = 2000

#: A batch: prompt and answer of each example, in token ids.
Pairs = list[tuple[list[int], list[int]]]


@dataclass(frozen=True, kw_only=True)
class Leg:
    """One fall of the learning rate. The next leg starts from the checkpoint that this one wrote."""

    num_steps: int
    #: Reached after the warm-up, from where it falls to 0 in a straight line.
    peak_learning_rate: float
    warmup_steps: int = 50

    def learning_rate(self, step: int) -> float:
        """Of a step, counted from 0."""
        return self.peak_learning_rate * min(1.0, (step + 1) / self.warmup_steps) * (1 - step / self.num_steps)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the weights."""

    seed: int = 0
    legs: tuple[Leg, ...] = (
        Leg(num_steps=1200, peak_learning_rate=1.5e-3),
        Leg(num_steps=560, peak_learning_rate=6e-4),
    )
    batch_size: int = 64
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0

    @property
    def num_examples(self) -> int:
        """Training examples that are drawn: the first so many of `examples(Side.TRAINING)`."""
        return max(TOKENIZER_EXAMPLES, sum(self.num_examples_of(leg) for leg in self.legs))

    def num_examples_of(self, leg: Leg) -> int:
        """In whole pools."""
        num_pools = -(-leg.num_steps // BATCHES_PER_POOL)
        return num_pools * BATCHES_PER_POOL * self.batch_size


def train(folder: Path, recipe: Recipe, *, first_leg: int = 1) -> None:
    """Writes a whole checkpoint into a folder, and what was measured of it into its training.json.

    From its second leg on (`first_leg` counts from 1) it goes on from the checkpoint that is in the folder.
    """
    started = time.monotonic()
    if first_leg == 1:
        begin(folder, recipe)
    training = examples(Side.TRAINING, seed=recipe.seed)
    for number, leg in enumerate(recipe.legs, start=1):
        drawn = islice(training, recipe.num_examples_of(leg))
        if number < first_leg:
            deque(drawn, maxlen=0)
            continue
        decoder, tokenizer = load(folder)
        fit(decoder, batches(tokenizer, drawn, recipe), leg, recipe)
        save_weights(decoder, folder)
    minutes = (time.monotonic() - started) / 60

    decoder, tokenizer = load(folder)  # what is measured is what was written
    exact = measure(decoder, tokenizer, list(islice(examples(Side.HELD_OUT, seed=0), HELD_OUT_EXAMPLES)))
    print(f"{exact:.2%} of {HELD_OUT_EXAMPLES} unseen sentences read exactly, after {minutes:.0f} minutes of training")
    record = {**asdict(recipe), "num_examples": recipe.num_examples, "held_out_exact": exact}
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def begin(folder: Path, recipe: Recipe) -> None:
    """Writes a checkpoint with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    training = examples(Side.TRAINING, seed=recipe.seed)
    texts = (text for e in islice(training, TOKENIZER_EXAMPLES) for text in (e.sentence, e.invoice.answer))
    tokenizer = train_tokenizer(texts)
    save_tokenizer(tokenizer, folder)
    write_config(folder, tokenizer)
    decoder = Decoder(ModelConfig.from_pretrained(folder))
    decoder.initialise(generator=torch.Generator().manual_seed(recipe.seed))
    save_weights(decoder, folder)


def fit(decoder: Decoder, leg_batches: Iterator[Pairs], leg: Leg, recipe: Recipe) -> None:
    """Trains a decoder in place, in float32 with bfloat16 products."""
    decoder.requires_grad_()
    optimiser = torch.optim.AdamW(decoder.parameters(), betas=(0.9, 0.95), weight_decay=recipe.weight_decay)
    started = time.monotonic()
    for step, batch in enumerate(islice(leg_batches, leg.num_steps)):
        for group in optimiser.param_groups:
            group["lr"] = leg.learning_rate(step)
        loss = answer_loss(decoder, *pack(batch))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), recipe.max_gradient_norm)
        optimiser.step()
        if (step + 1) % 20 == 0:
            print(f"step {step + 1:5d}  loss {loss.item():.4f}  {time.monotonic() - started:6.0f} s", flush=True)


def batches(tokenizer: Tokenizer, drawn: Iterator[Example], recipe: Recipe) -> Iterator[Pairs]:
    """Batches of examples in token ids; the sentences of a batch are about equally long."""
    rng = random.Random(recipe.seed)
    while pool := [encode(tokenizer, example) for example in islice(drawn, recipe.batch_size * BATCHES_PER_POOL)]:
        pool.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        sorted_batches = [pool[at : at + recipe.batch_size] for at in range(0, len(pool), recipe.batch_size)]
        rng.shuffle(sorted_batches)
        yield from sorted_batches


def answer_loss(decoder: Decoder, token_ids: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over the tokens of the answers."""
    answered = targets != IGNORED
    with torch.autocast("cpu", torch.bfloat16):
        logits = decoder.logits(hidden_states(decoder, token_ids)[answered])
    return functional.cross_entropy(logits.float(), targets[answered])


def main() -> None:
    """Trains the invoice reader."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to (default: %(default)s)")
    parser.add_argument(
        "--first-leg", type=int, default=1, help="later ones go on from --folder (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="(default: %(default)s)")
    arguments = parser.parse_args()
    train(arguments.folder, Recipe(seed=arguments.seed), first_leg=arguments.first_leg)


if __name__ == "__main__":
    main()
