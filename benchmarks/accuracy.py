"""How far the log-probabilities of a faster arithmetic are from those of float32.

    python -m benchmarks.accuracy [--model llama-110m] [--tokens 512]

Random tokens through the model in plain float32, and in bfloat16 and int8 with the CPU kernels and without. Prints
the mean absolute difference of the log-probabilities of all entries of the vocabulary at all positions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.make_model import SHAPES, find_model
from models.checkpoint import load_decoder
from models.config import ModelConfig
from models.kernels.cpu.kernels import cpu_kernels
from models.kernels.interface import PLAIN, Kernels
from models.layers.attention import KVCache, StepMetadata

BLOCK_SIZE = 16


def main() -> None:
    """Prints a line for each arithmetic."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", choices=sorted(SHAPES), default="llama-110m")
    parser.add_argument("--tokens", type=int, default=512, help="positions (default: %(default)s)")
    arguments = parser.parse_args()
    folder = find_model(arguments.model)
    exact = logprobs(folder, torch.float32, PLAIN, arguments.tokens)
    for name, dtype, kernels in (
        ("float32, CPU kernels", torch.float32, cpu_kernels(torch.float32)),
        ("bfloat16, torch", torch.bfloat16, PLAIN),
        ("bfloat16, CPU kernels", torch.bfloat16, cpu_kernels(torch.bfloat16)),
        ("int8, CPU kernels", torch.bfloat16, cpu_kernels(torch.bfloat16, is_quantised=True)),
    ):
        if kernels is None:
            print(f"{name}: the kernels were not built")
            continue
        difference = (logprobs(folder, dtype, kernels, arguments.tokens) - exact).abs()
        print(f"{name}: mean absolute difference {difference.mean():.2g}, greatest {difference.max():.2g}")


@torch.inference_mode()
def logprobs(folder: Path, dtype: torch.dtype, kernels: Kernels, num_tokens: int) -> Tensor:
    """[num_tokens, vocab_size] float32 of a prompt of random tokens, computed as one step of the engine."""
    config = ModelConfig.from_pretrained(folder)
    decoder = load_decoder(folder, config, dtype=dtype, kernels=kernels)
    num_blocks = -(-num_tokens // BLOCK_SIZE)
    cache = KVCache(
        num_layers=config.num_layers,
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=dtype,
        device="cpu",
    )
    step = StepMetadata.of([num_tokens], [num_tokens], [range(num_blocks)], block_size=BLOCK_SIZE)
    token_ids = torch.randint(config.vocab_size, (num_tokens,), generator=torch.Generator().manual_seed(0))
    hidden = decoder(token_ids, torch.arange(num_tokens), decoder.kernels.attention(cache, step))
    return decoder.logits(hidden).float().log_softmax(-1)


if __name__ == "__main__":
    main()
