"""Whether the folder of a model is whole: its configuration, its tokenizer, and every byte of its weights."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pipeline.checks.findings import Finding, failed, ok, warning
from pipeline.errors import PipelineError
from pipeline.model_folder import resolve_model
from pipeline.tokenization import Tokenizer

_INDEX: Final = "model.safetensors.index.json"
#: Longest header that the format allows, in bytes.
_MAX_HEADER_BYTES: Final = 100_000_000


def check_model(subject: str, name_or_path: str) -> Iterator[Finding]:
    """Of a model that is served, or is to be. Weights are looked at, and not read."""
    try:
        folder = resolve_model(name_or_path)
        json.loads((folder / "config.json").read_bytes())
        tokenizer = Tokenizer.load(folder)
    except (PipelineError, OSError, ValueError) as error:
        yield failed(subject, str(error), "Give the folder of a model that this machine can read.")
        return
    try:
        files = _weight_files(folder)
        problems = [problem for file in files if (problem := _problem_of(file)) is not None]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problems, files = [f"{_INDEX} can't be read ({type(error).__name__})"], []
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        yield failed(subject, shown, f"Download the model into {folder} again: groups can't load it.")
    elif not files:
        yield warning(subject, f"{folder} has no .safetensors", "Only the echo engine can serve it.")
    else:
        size = sum(file.stat().st_size for file in files) / 1024**3
        yield ok(subject, f"{folder}, {tokenizer.vocab_size} token ids, {len(files)} files of weights, {size:.2f} GiB")


def _weight_files(folder: Path) -> list[Path]:
    """Those that the index names, else all that there are. Raises what reading JSON of any shape does."""
    index = folder / _INDEX
    if index.exists():
        names: dict[str, Any] = json.loads(index.read_bytes())["weight_map"]
        return [folder / name for name in sorted(set(names.values()))]
    return sorted(folder.glob("*.safetensors"))


def _problem_of(file: Path) -> str | None:
    """What is wrong with a file of weights, by its header: 8 bytes of length, JSON, then the tensors."""
    try:
        with file.open("rb") as content:
            (length,) = struct.unpack("<Q", content.read(8))
            if length > _MAX_HEADER_BYTES:
                return f"{file.name} is no file of safetensors"
            header = json.loads(content.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        missing = 8 + length + max(ends, default=0) - file.stat().st_size
    except FileNotFoundError:
        return f"{file.name} is missing"
    except OSError as error:
        return f"{file.name} can't be read ({error.strerror})"
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return f"{file.name} is no file of safetensors"
    return f"{file.name} lacks {missing:,} bytes at its end" if missing > 0 else None
