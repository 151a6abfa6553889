"""The cases of the parity tests. Imports no transformers, so that ranks start quickly."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

#: Prompts of one token, of less and of more than the blocks, windows and scaled lengths below.
PROMPT_LENGTHS = (1, 11, 37)
NUM_NEW_TOKENS = 12
#: 101 entries are no multiple of 2 or 4 ranks.
BASE: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.12,
    "tie_word_embeddings": False,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@dataclass(frozen=True)
class Case:
    name: str
    family: str
    options: dict[str, Any] = field(default_factory=dict)
    #: As `save_pretrained` takes it.
    max_shard_size: str = "1GB"
    #: Of the paged attention; neither divides the prompts.
    block_size: int = 4
    chunk: int = 7


CASES = (
    Case("llama", "llama", {}, block_size=16, chunk=64),
    Case("llama-tied-biases", "llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    Case("llama-head-dim", "llama", {"head_dim": 24, "num_key_value_heads": 4}, block_size=1),
    Case("llama-one-kv-head", "llama", {"num_key_value_heads": 1}, block_size=5, chunk=1),
    Case("llama-several-files", "llama", {}, max_shard_size="60KB"),
    Case("llama-theta", "llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}),
    Case("llama-linear", "llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.5}}),
    # Prompts below and beyond the 16 positions, and one that generates past them.
    Case(
        "llama-dynamic",
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 16},
        block_size=3,
    ),
    Case(
        "llama-llama3",
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    Case("llama-yarn", "llama", {"rope_parameters": YARN}),
    Case("llama-yarn-attention-factor", "llama", {"rope_parameters": {**YARN, "attention_factor": 1.3}}),
    Case(
        "llama-yarn-mscale",
        "llama",
        {
            "rope_parameters": {
                **YARN,
                "mscale": 0.8,
                "mscale_all_dim": 0.3,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "truncate": False,
            }
        },
    ),
    Case("mistral-window", "mistral", {"sliding_window": 5}, block_size=4, chunk=3),
    Case("mistral-no-window", "mistral", {"sliding_window": None, "head_dim": 32, "tie_word_embeddings": True}),
    Case("qwen2", "qwen2", {"tie_word_embeddings": True}),
    Case("qwen2-window", "qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}, chunk=9),
    Case("qwen2-yarn", "qwen2", {"rope_parameters": YARN, "num_key_value_heads": 4}),
    Case("qwen3", "qwen3", {"head_dim": 32, "tie_word_embeddings": True}, block_size=7, chunk=5),
    Case(
        "qwen3-layer-types",
        "qwen3",
        {
            "head_dim": 16,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        block_size=2,
    ),
    Case(
        "qwen3-dynamic",
        "qwen3",
        {
            "head_dim": 32,
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0},
            "max_position_embeddings": 24,
        },
    ),
)


@dataclass(frozen=True)
class Answer:
    """To one prompt."""

    #: [prompt tokens, vocab_size]
    prompt_logits: Tensor
    #: Greedy.
    token_ids: list[int]
    #: [new tokens, vocab_size], each row what its token was taken from.
    logits: Tensor


@dataclass(frozen=True)
class Reference:
    case: Case
    folder: Path
    prompts: list[list[int]]
    answers: list[Answer]
