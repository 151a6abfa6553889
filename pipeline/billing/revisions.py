"""What a model folder holds, as one number each for the model and for its tokenizer, so that a change can be told."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: What the tokens of a prompt depend on.
_TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "config.json",
)
#: Larger files, which are the weights, are known by their names and sizes.
_MOST_BYTES: Final = 256 * 1024**2


@dataclass(frozen=True, slots=True)
class Revisions:
    model: str
    tokenizer: str


def revisions_of(folder: Path) -> Revisions:
    """Hex of SHA-256, 64 digits each. Raises OSError.

    The tokenizer's covers the contents of its files. The model's covers those of all small files that are no weights,
    and the names and sizes of weights.
    """
    weights = sorted(path for path in folder.glob("*.safetensors"))
    texts = sorted(path for path in folder.glob("*.json") if path.stat().st_size <= _MOST_BYTES)
    tokenizer = [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]
    sizes = [f"{path.name} {path.stat().st_size}".encode() for path in weights]
    return Revisions(_hash(texts, sizes), _hash(tokenizer))


def _hash(files: Iterable[Path], others: Iterable[bytes] = ()) -> str:
    """Of names and contents, each hashed by itself so that none can pass for part of another."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(hashlib.sha256(path.name.encode()).digest() + hashlib.file_digest(file, "sha256").digest())
    for other in others:
        total.update(hashlib.sha256(other).digest())
    return total.hexdigest()
