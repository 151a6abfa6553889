"""Models of real shapes with random weights, for measuring speed: their answers mean nothing.

    python -m benchmarks.make_model [llama-110m] [qwen3-0.6b] [--folder FOLDER]

Made once, and found again. A folder holds what every engine reads: config.json, the tokenizer and model.safetensors
in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from benchmarks.workloads import NUM_SPECIAL_TOKENS
from models.checkpoint import checkpoint_tensors
from models.config import ModelConfig
from models.decoder import Decoder

_COMMON: dict[str, Any] = {
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "use_cache": True,
}
#: config.json of each model.
SHAPES: dict[str, dict[str, Any]] = {
    "llama-110m": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 32_000,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "head_dim": 64,
        "intermediate_size": 2_048,
        "max_position_embeddings": 4_096,
        "rope_theta": 10_000.0,
        "mlp_bias": False,
        **_COMMON,
    },
    "qwen3-0.6b": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": 1_024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3_072,
        "max_position_embeddings": 40_960,
        "rope_theta": 1_000_000.0,
        "sliding_window": None,
        "use_sliding_window": False,
        **_COMMON,
    },
}
_SEED = 0
#: Standard deviation of the weights: logits far enough apart for greedy decoding to be worth comparing.
_STD = 0.04
#: The last entries of a vocabulary; those that a chat template needs come first.
_SPECIAL = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def default_folder() -> Path:
    """Where models are kept: outside of the repository, since they are large."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ryzanstein" / "benchmarks"


def find_model(name: str, folder: Path | None = None) -> Path:
    """The model's folder; it is made where there is none. Raises ValueError for a name that is not in SHAPES."""
    if name not in SHAPES:
        raise ValueError(f"The model is {name!r}; it must be one of {', '.join(SHAPES)}.")
    folder = folder or default_folder()
    wanted = folder / name
    if not wanted.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder))
        try:
            write_model(unfinished, SHAPES[name])
            unfinished.chmod(0o755)
            unfinished.rename(wanted)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return wanted


def write_model(folder: Path, shape: dict[str, Any]) -> None:
    """Writes the files of a model whose config.json is `shape` into an empty folder."""
    vocab_size = shape["vocab_size"]
    end = vocab_size - NUM_SPECIAL_TOKENS
    config = {**shape, "bos_token_id": None, "eos_token_id": end, "pad_token_id": end}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end, "pad_token_id": end}) + "\n")
    make_tokenizer(vocab_size).save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": _SPECIAL[0],
        "pad_token": _SPECIAL[0],
        "model_max_length": shape["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "chat_template": _CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")
    decoder = Decoder(ModelConfig.from_pretrained(folder), dtype=torch.bfloat16)
    decoder.initialise(_STD, torch.Generator().manual_seed(_SEED))
    save_file(checkpoint_tensors(decoder), folder / "model.safetensors", metadata={"format": "pt"})


def make_tokenizer(vocab_size: int) -> Tokenizer:
    """Byte-level BPE of exactly that size: bytes, then pairs of bytes, then pairs with a third; special tokens last."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = list(islice(_merges(letters), vocab_size - len(letters) - NUM_SPECIAL_TOKENS))
    entries = [*letters, *("".join(merge) for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={entry: number for number, entry in enumerate(entries)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = [*_SPECIAL, *(f"<|unused-{number}|>" for number in range(NUM_SPECIAL_TOKENS - len(_SPECIAL)))]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    if (size := tokenizer.get_vocab_size()) != vocab_size:
        raise ValueError(f"The tokenizer has {size} entries, and {vocab_size} were wanted.")
    return tokenizer


def _merges(letters: list[str]) -> Iterator[tuple[str, str]]:
    yield from product(letters, letters)
    for first, second in product(letters, letters):
        for third in letters:
            yield first + second, third


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(SHAPES), help=f"of {', '.join(SHAPES)}; default: all")
    parser.add_argument("--folder", type=Path, default=default_folder())
    options = parser.parse_args()
    for name in options.models:
        print(find_model(name, options.folder))


if __name__ == "__main__":
    main()
