"""Tiny checkpoint folders that a test can spoil."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from models.checkpoint import checkpoint_tensors
from models.config import ModelConfig
from models.decoder import Decoder

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-6,
    "dtype": "float32",
    "eos_token_id": 2,
}


def write_config(folder: Path, **changes: Any) -> Path:
    """A Llama's config.json with these fields changed; None writes null."""
    (folder / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    return folder


def read_config(folder: Path, **changes: Any) -> ModelConfig:
    return ModelConfig.from_pretrained(write_config(folder, **changes))


def random_decoder(config: ModelConfig) -> Decoder:
    decoder = Decoder(config)
    decoder.initialise(std=0.3, generator=torch.Generator().manual_seed(0))
    return decoder.eval()


def write_checkpoint(folder: Path, **changes: Any) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """A whole folder; returns its configuration and tensors."""
    config = read_config(folder, **changes)
    tensors = checkpoint_tensors(random_decoder(config))
    save_file(tensors, folder / "model.safetensors")
    return config, tensors
