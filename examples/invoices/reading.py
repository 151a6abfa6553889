"""Reads invoices with the trained decoder in plain torch, without the service: to measure it, and to test it.

python -m examples.invoices.reading --count 2000
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer

from examples.invoices.generate import Example, Side, examples
from examples.invoices.sequences import IGNORED, encode, hidden_states, pack
from models.checkpoint import load_decoder
from models.config import ModelConfig
from models.decoder import Decoder
from models.kernels.cpu.kernels import cpu_kernels

#: The committed checkpoint.
FOLDER = Path(__file__).parent / "invoice-reader"
#: Sentences that are measured side by side.
BATCH_SIZE = 125


def load(folder: Path, dtype: torch.dtype = torch.float32, *, is_quantised: bool = False) -> tuple[Decoder, Tokenizer]:
    """The decoder and the tokenizer of a checkpoint. Quantised, it needs the native CPU kernels."""
    kernels = cpu_kernels(dtype, is_quantised=True) if is_quantised else None
    if is_quantised and kernels is None:
        raise SystemExit("int8 needs the native CPU kernels, which were not built; `ryzanstein doctor` says why.")
    decoder = load_decoder(folder, ModelConfig.from_pretrained(folder), dtype=dtype, kernels=kernels)
    return decoder, Tokenizer.from_file(str(folder / "tokenizer.json"))


@torch.inference_mode()
def measure(decoder: Decoder, tokenizer: Tokenizer, held_out: Sequence[Example]) -> float:
    """The part of the examples that greedy decoding answers exactly right, from 0 to 1.

    One pass tells: an answer is right if and only if each of its tokens is the likeliest after those before it.
    """
    pairs = sorted((encode(tokenizer, example) for example in held_out), key=lambda pair: len(pair[0]) + len(pair[1]))
    num_right = 0
    for start in range(0, len(pairs), BATCH_SIZE):
        token_ids, targets = pack(pairs[start : start + BATCH_SIZE])
        likeliest = decoder.logits(hidden_states(decoder, token_ids).flatten(0, 1)).argmax(-1).view_as(targets)
        num_right += int(((likeliest == targets) | (targets == IGNORED)).all(1).sum())
    return num_right / len(held_out)


def main() -> None:
    """Measures a checkpoint on sentences that it was not trained on."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="checkpoint (default: %(default)s)")
    parser.add_argument("--count", type=int, default=2000, help="sentences to read (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which sentences (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--quantize", choices=("none", "int8"), default="none")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    decoder, tokenizer = load(arguments.folder, dtype, is_quantised=arguments.quantize == "int8")
    held_out = list(islice(examples(Side.HELD_OUT, seed=arguments.seed), arguments.count))
    print(f"{measure(decoder, tokenizer, held_out):.2%} of {len(held_out)} unseen sentences read exactly")


if __name__ == "__main__":
    main()
