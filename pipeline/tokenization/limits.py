"""What a tokenizer.json may ask of the tokenizers library, which does not defend itself.

Its native part ends the process where memory is not to be had, so that what takes too much is refused before.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import tokenizers

#: Steps that are applied to each text, per section of the file; real files have up to six.
MAX_STEPS: Final = 64
#: How many times longer all replacements together can make a text. `▁` for a space makes it three times as long.
MAX_GROWTH: Final = 64.0
#: Tokens that are put around each text; real files have one or two.
MAX_ADDED_TOKENS: Final = 64

#: Where a section keeps the steps of a `Sequence`.
_STEPS: Final = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}


class ExcessiveTokenizerError(ValueError):
    """A tokenizer.json asks for more than any real one."""


def check_steps(content: Mapping[str, Any]) -> None:
    """Of the content of a tokenizer.json, before the library reads it. Raises ExcessiveTokenizerError."""
    for section, inner in _STEPS.items():
        num_steps = sum(1 for _ in _flatten(content.get(section), inner))
        if num_steps > MAX_STEPS:
            raise ExcessiveTokenizerError(f"the {section} has {num_steps} steps; {MAX_STEPS} are the most")
    growth = 1.0
    for step in _flatten(content.get("normalizer"), _STEPS["normalizer"]):
        growth *= _growth(step)
        if step.get("type") == "Precompiled":
            _check_precompiled(step.get("precompiled_charsmap"))
    if growth > MAX_GROWTH:
        raise ExcessiveTokenizerError(
            f"the normalizer can make a text {growth:.0f} times as long; {MAX_GROWTH:.0f} is the most"
        )


def check_added_tokens(backend: tokenizers.Tokenizer) -> None:
    """Raises ExcessiveTokenizerError."""
    num_added = backend.num_special_tokens_to_add(False)
    if num_added > MAX_ADDED_TOKENS:
        raise ExcessiveTokenizerError(
            f"the post_processor puts {num_added} tokens around each text; {MAX_ADDED_TOKENS} are the most"
        )


def _flatten(step: Any, inner: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a section, those of sequences among them; what has no sense is left for the library to refuse."""
    pending = [step]
    while pending:
        step = pending.pop()
        if not isinstance(step, dict):
            continue
        if step.get("type") == "Sequence" and isinstance(step.get(inner), list):
            pending += reversed(step[inner])
        else:
            yield step


def _growth(step: Mapping[str, Any]) -> float:
    """How many times longer, in bytes, a step can make a text; the fixed forms of Unicode are left out."""
    match step:
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
            return max(1.0, len(new.encode()) / len(old.encode())) if old else math.inf
        case {"type": "Replace", "content": str(new)}:  # a regular expression can match nothing, at every character
            return 1.0 + len(new.encode())
        case _:
            return 1.0


def _check_precompiled(charsmap: Any) -> None:
    """It begins with the size of its first part in bytes, for which the library takes memory at once."""
    if not isinstance(charsmap, str):
        return
    try:
        data = base64.b64decode(charsmap)
    except (binascii.Error, ValueError):
        return
    if int.from_bytes(data[:4], "little") > len(data):
        raise ExcessiveTokenizerError("the precompiled_charsmap of the normalizer is shorter than it says")
