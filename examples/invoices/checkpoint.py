"""Writes a decoder as a Hugging Face folder, so that anything that reads Llama reads it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from examples.invoices.tokenizer import BEGIN, CONTEXT_LENGTH, END, PAD, VOCAB_SIZE, token_id
from models.checkpoint import checkpoint_tensors
from models.decoder import Decoder

HIDDEN_SIZE = 256
NUM_LAYERS = 4
NUM_HEADS = 8
NUM_KV_HEADS = 4
HEAD_DIM = HIDDEN_SIZE // NUM_HEADS
INTERMEDIATE_SIZE = 704


def write_config(folder: Path, tokenizer: Tokenizer) -> None:
    """Writes config.json and generation_config.json of a Llama of 3.1 million parameters."""
    special = {
        "bos_token_id": token_id(tokenizer, BEGIN),
        "eos_token_id": token_id(tokenizer, END),
        "pad_token_id": token_id(tokenizer, PAD),
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": INTERMEDIATE_SIZE,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": NUM_KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT_LENGTH,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
        **special,
    }
    for name, content in {"config.json": config, "generation_config.json": {"do_sample": False, **special}}.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def save_weights(decoder: Decoder, folder: Path) -> None:
    """Writes model.safetensors in bfloat16: 2 bytes per parameter."""
    weights = {name: weight.to(torch.bfloat16) for name, weight in checkpoint_tensors(decoder).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
