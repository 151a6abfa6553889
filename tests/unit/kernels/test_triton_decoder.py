"""A whole decoder on the GPU's kernels, under Triton's interpreter (see conftest.py)."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: there is none for this system")

from models.config import ModelConfig
from models.decoder import Decoder
from models.kernels.gpu.kernels import TritonKernels
from models.kernels.interface import PLAIN
from models.layers.attention import KVCache, StepMetadata


def test_a_decoder_answers_as_with_the_reference() -> None:
    config = ModelConfig(
        family="qwen3",
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_position_embeddings=64,
        qk_norm=True,
        tie_word_embeddings=True,
    )
    step = StepMetadata.of([6, 1], [6, 1], [[0, 2], [1]], block_size=4)
    answers = []
    for kernels in (PLAIN, TritonKernels()):
        decoder = Decoder(config)
        decoder.initialise(std=0.2, generator=torch.Generator().manual_seed(0))
        decoder.requires_grad_(False).use(kernels)
        cache = KVCache(
            num_layers=2, num_blocks=3, block_size=4, num_kv_heads=2, head_dim=16, dtype=torch.float32, device="cpu"
        )
        token_ids, positions = torch.tensor([1, 2, 3, 4, 5, 6, 7]), torch.tensor([0, 1, 2, 3, 4, 5, 0])
        hidden = decoder(token_ids, positions, kernels.attention(cache, step))
        answers.append(decoder.logits(hidden))
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-4, atol=1e-4)
