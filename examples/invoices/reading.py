"""Reads invoices with the trained decoder in plain torch, without the service: to measure it, and to test it.

python -m examples.invoices.reading --count 1000
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer

from examples.invoices.generate import MAX_ANSWER_TOKENS, Example, Side, examples
from examples.invoices.tokenizer import END, PAD, render_prompt, token_id
from models.checkpoint import load_decoder
from models.config import ModelConfig
from models.decoder import Decoder
from models.layers.attention import CausalAttention

#: The committed checkpoint.
FOLDER = Path(__file__).parent / "invoice-reader"
#: Sentences that are read side by side.
BATCH_SIZE = 125


def load(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Decoder, Tokenizer]:
    """The decoder and the tokenizer of a checkpoint."""
    decoder = load_decoder(folder, ModelConfig.from_pretrained(folder), dtype=dtype)
    return decoder, Tokenizer.from_file(str(folder / "tokenizer.json"))


@torch.inference_mode()
def read(decoder: Decoder, tokenizer: Tokenizer, sentences: Sequence[str]) -> list[str]:
    """The likeliest token, one after another, for all sentences at once; each answer without its end.

    Nothing is cached: every step computes the sentences anew.
    """
    prompts = [tokenizer.encode(render_prompt(sentence)).ids for sentence in sentences]
    end, pad = token_id(tokenizer, END), token_id(tokenizer, PAD)
    rows = torch.arange(len(prompts))
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    token_ids = torch.full((len(prompts), int(lengths.max()) + MAX_ANSWER_TOKENS), pad)
    for row, prompt in zip(token_ids, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    running = torch.ones(len(prompts), dtype=torch.bool)
    for _ in range(MAX_ANSWER_TOKENS):
        length = int(lengths.max())
        hidden = decoder(
            token_ids[:, :length].flatten(),
            torch.arange(length).repeat(len(prompts)),
            CausalAttention(len(prompts), length),
        )
        last = hidden.unflatten(0, (len(prompts), length))[rows, lengths - 1]
        token_ids[rows, lengths] = torch.where(running, decoder.logits(last).argmax(-1), end)
        running &= token_ids[rows, lengths] != end
        lengths += 1
        if not running.any():
            break
    answers = [row[len(prompt) :].tolist() for row, prompt in zip(token_ids, prompts, strict=True)]
    return [tokenizer.decode(answer[: answer.index(end)] if end in answer else answer) for answer in answers]


def measure(decoder: Decoder, tokenizer: Tokenizer, held_out: Sequence[Example]) -> float:
    """The part of the examples whose whole answer is right, from 0 to 1."""
    num_right = 0
    for start in range(0, len(held_out), BATCH_SIZE):
        batch = held_out[start : start + BATCH_SIZE]
        answers = read(decoder, tokenizer, [example.sentence for example in batch])
        num_right += sum(answer == example.invoice.answer for answer, example in zip(answers, batch, strict=True))
    return num_right / len(held_out)


def main() -> None:
    """Measures a checkpoint on sentences that it was not trained on."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="checkpoint (default: %(default)s)")
    parser.add_argument("--count", type=int, default=1000, help="sentences to read (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which sentences (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    decoder, tokenizer = load(arguments.folder, getattr(torch, arguments.dtype))
    held_out = list(islice(examples(Side.HELD_OUT, seed=arguments.seed), arguments.count))
    print(f"{measure(decoder, tokenizer, held_out):.2%} of {len(held_out)} unseen sentences read exactly")


if __name__ == "__main__":
    main()
