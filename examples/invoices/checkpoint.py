"""Writes a decoder as a Hugging Face folder, so that anything that reads Llama reads it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from examples.invoices.tokenizer import BEGIN, CONTEXT_LENGTH, END, PAD, VOCAB_SIZE, token_id
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
    weights = {name: weight.detach().to(torch.bfloat16).contiguous() for name, weight in named_weights(decoder).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def named_weights(decoder: Decoder) -> dict[str, Tensor]:
    """The weights under the names of a Llama checkpoint; our joint matrices are cut into the parts it knows."""
    ours: dict[str, Tensor] = dict(decoder.named_parameters())
    widths = {
        "qkv": [NUM_HEADS * HEAD_DIM, NUM_KV_HEADS * HEAD_DIM, NUM_KV_HEADS * HEAD_DIM],
        "gate_up": [INTERMEDIATE_SIZE, INTERMEDIATE_SIZE],
    }
    named = {"model.embed_tokens.weight": ours["embedding.weight"], "model.norm.weight": ours["norm.weight"]}
    for layer in range(NUM_LAYERS):
        here, there = f"layers.{layer}", f"model.layers.{layer}"
        query, key, value = torch.split(ours[f"{here}.attention.qkv.weight"], widths["qkv"])
        gate, up = torch.split(ours[f"{here}.mlp.gate_up.weight"], widths["gate_up"])
        named |= {
            f"{there}.input_layernorm.weight": ours[f"{here}.attention_norm.weight"],
            f"{there}.self_attn.q_proj.weight": query,
            f"{there}.self_attn.k_proj.weight": key,
            f"{there}.self_attn.v_proj.weight": value,
            f"{there}.self_attn.o_proj.weight": ours[f"{here}.attention.output.weight"],
            f"{there}.post_attention_layernorm.weight": ours[f"{here}.mlp_norm.weight"],
            f"{there}.mlp.gate_proj.weight": gate,
            f"{there}.mlp.up_proj.weight": up,
            f"{there}.mlp.down_proj.weight": ours[f"{here}.mlp.down.weight"],
        }
    return named
