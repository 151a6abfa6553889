"""Changes to the files of a model folder: of bytes anywhere, and of values where JSON is kept."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

ODD_VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    7,
    2**15,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**63,
    2**64,
    10**30,
    0.0,
    -0.5,
    1e-300,
    1e308,
    "",
    "\0",
    "x",
    "▁",
    "\ud800",
    "x" * 100_000,
    [],
    {},
    [None],
    [[]],
    [-1],
    [2**62, 2**62],
    {"": None},
    {"type": "Sequence"},
    {"content": 1},
    "(a+)+$",
    "F64",
    "ByteLevel",
    "Unigram",
    "WordPiece",
    "Precompiled",
]
#: Steps of a tokenizer.json that cost much, or that have broken the library.
ODD_STEPS: list[Any] = [
    {"type": "Replace", "pattern": {"String": "e"}, "content": "ee"},
    {"type": "Replace", "pattern": {"String": ""}, "content": "x"},
    {"type": "Replace", "pattern": {"Regex": ""}, "content": "xx"},
    {"type": "Replace", "pattern": {"Regex": "(?:(o|o)*)*k"}, "content": "▁"},
    {"type": "Split", "pattern": {"Regex": "(\\w+)+$"}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"Regex": ""}, "behavior": "MergedWithNext", "invert": True},
    {"type": "Precompiled", "precompiled_charsmap": "/////2FhYWE="},
    {"type": "Precompiled", "precompiled_charsmap": "CAAAAAAAAAAAAAAAYQBiAA=="},
    {"type": "Prepend", "prepend": "▁" * 5000},
    {"type": "Strip", "content": "T", "start": 2**63, "stop": 0},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Digits", "individual_digits": True},
    {"type": "NFKD"},
    {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": 1},
    {"type": "Punctuation", "behavior": "Removed"},
    {"type": "UnicodeScripts"},
    {"type": "BPEDecoder", "suffix": "e"},
    {"type": "CTC", "pad_token": "e", "word_delimiter_token": "o", "cleanup": True},
    {"type": "RobertaProcessing", "sep": ["e", 2**31], "cls": ["", 0], "trim_offsets": True, "add_prefix_space": True},
    {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "B", "type_id": 0}}],
        "pair": [],
        "special_tokens": {},
    },
]
SECTIONS = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
SPOILED = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors")


def spoil(folder: Path, rng: random.Random) -> str:
    """Change one file; returns what was done."""
    path = folder / rng.choice(SPOILED)
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        how, data = _spoil_safetensors(data, rng)
    elif path.name == "tokenizer.json" and rng.random() < 0.3:
        how, data = _spoil_steps(data, rng)
    elif rng.random() < 0.3:
        how, data = spoil_bytes(data, rng)
    else:
        how, data = spoil_json(data, rng)
    path.write_bytes(data)
    return f"{path.name}: {how}"


def spoil_bytes(data: bytes, rng: random.Random, end: int | None = None) -> tuple[str, bytes]:
    """One to four bytes changed, taken out or put in, or all that follows cut off, before position `end`."""
    changed = bytearray(data)
    done = []
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(max(1, min(len(changed), end or len(changed))))
        match rng.choice(["change", "change", "flip", "delete", "insert", "cut"]):
            case "change":
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case "flip" if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case "delete":
                del changed[at : at + rng.choice([1, 2, 30])]
            case "insert":
                changed[at:at] = rng.choice([b"0", b"9" * 20, b"[" * 2000, b'"', b"\xff\xfe", b"e9", b"-", b"\0"])
            case "cut" if rng.random() < 0.2:
                del changed[at:]
        done.append(at)
    return f"bytes at {done}", bytes(changed)


def spoil_json(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One to three values, at any depth, replaced, removed, renamed or repeated."""
    content = json.loads(data)
    done = [_spoil_value(content, rng) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    return "; ".join(done), json.dumps(content).encode()


def _spoil_steps(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """What a tokenizer does before or after its model, beside or instead of what it did."""
    content = json.loads(data)
    section = rng.choice(list(SECTIONS))
    steps = [rng.choice(ODD_STEPS) for _ in range(rng.choice([1, 1, 2, 3]))] * rng.choice([1, 1, 20])
    if content.get(section) is not None and rng.random() < 0.5:
        steps.insert(rng.choice([0, len(steps)]), content[section])
    content[section] = {"type": "Sequence", SECTIONS[section]: steps} if len(steps) > 1 else steps[0]
    return f"{section} {json.dumps(content[section])[:1000]}", json.dumps(content).encode()


def _spoil_value(content: Any, rng: random.Random) -> str:
    parent, path = content, ""
    while True:
        keys: list[Any] = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        if not keys:
            return f"nothing in {path or 'it'}"
        key = rng.choice(keys)
        path += f"[{key!r:.40}]"
        if isinstance(parent[key], dict | list) and parent[key] and rng.random() < 0.8:
            parent = parent[key]
            continue
        break
    actions: dict[str, Callable[[], None]] = {
        "replaced": lambda: parent.__setitem__(key, copy.deepcopy(rng.choice(ODD_VALUES))),
        "removed": lambda: parent.__delitem__(key),
    }
    if isinstance(parent, dict):
        actions["renamed"] = lambda: parent.__setitem__(rng.choice(["", "x", "type"]), parent.pop(key))
    else:
        actions["repeated"] = lambda: parent.extend([parent[key]] * rng.choice([1, 100]))
    if isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
        actions["shifted"] = lambda: parent.__setitem__(key, parent[key] + rng.choice([-1, 1, 8, 1000]))
    action = rng.choice(["replaced", *actions])
    actions[action]()
    return f"{path} {action} to {str(parent[key])[:60]!r}" if action in ("replaced", "shifted") else f"{path} {action}"


def _spoil_safetensors(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """In the header: its length (8 bytes, little-endian), its JSON, or any of its bytes."""
    length = int.from_bytes(data[:8], "little")
    header, tensors = data[8 : 8 + length], data[8 + length :]
    match rng.choice(["length", "json", "json", "bytes", "bytes", "tensors"]):
        case "length":
            said = rng.choice([0, 1, length - 1, length + 1, len(data), 2**31, 2**63, 2**64 - 1, rng.randrange(2**64)])
            return f"length of the header {said}", said.to_bytes(8, "little") + header + tensors
        case "json":
            how, header = spoil_json(header, rng)
            return how, len(header).to_bytes(8, "little") + header + tensors
        case "bytes":
            return spoil_bytes(data, rng, end=8 + length)
        case _:
            cut = rng.randrange(len(tensors))
            return f"all but {cut} bytes of the tensors cut off", data[: 8 + length + cut]
