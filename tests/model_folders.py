"""Whole model folders with random weights, small enough to load and run in an instant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizer_folders import byte_level

from models.checkpoint import checkpoint_tensors
from models.config import ModelConfig
from models.decoder import Decoder


def random_llama(folder: Path, *, seed: int = 0, context_length: int = 128, **config: Any) -> Path:
    """A Llama with a byte-level tokenizer. Its answers are gibberish, but never twice the same token for long."""
    byte_level(
        folder,
        context_length=context_length,
        **{
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": False,
            "dtype": "float32",
            **config,
        },
    )
    decoder = Decoder(ModelConfig.from_pretrained(folder))
    decoder.initialise(std=0.12, generator=torch.Generator().manual_seed(seed))
    save_file(checkpoint_tensors(decoder), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
