"""The readers of lines, uploads and templates, fuzzed by coverage: atheris looks for bytes that reach new code."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from budget import Budget
from tokenizer_folders import ALTERNATING, CHATML

#: By the byte that chooses it: an endpoint.
ENDPOINTS = {0: "/v1/chat/completions", 1: "/v1/completions"}
#: What the first changes are made to.
BODIES: list[tuple[int, dict[str, Any]]] = [
    (0, {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "stop": ["x"], "n": 2}),
    (0, {"model": "m", "messages": [{"role": "developer", "content": [{"type": "text", "text": "a"}], "name": "b"}]}),
    (0, {"model": "m", "messages": [{"role": "tool", "content": None, "tool_calls": [1]}], "stream": True}),
    (0, {"model": "m", "messages": [], "logprobs": True, "top_logprobs": 21, "tools": [{}], "response_format": {}}),
    (1, {"model": "m", "prompt": [1, 2], "logit_bias": {"5": -1.5}, "seed": -1, "top_p": 0.5, "user": None}),
    (1, {"model": "m", "prompt": "x", "logit_bias": {"-5": 101}, "temperature": 3, "best_of": 2, "metadata": {"a": 1}}),
    (1, {"model": "m", "prompt": ["x", "y"], "n": 1.5, "stop": "\0", "max_tokens": 10**30, "unknown": 1}),
]
#: As a form, in parts of which each has a name, more about it, and a content.
UPLOADS: list[list[tuple[str, str, str]]] = [
    [("purpose", "", "batch"), ("file", '; filename="a.jsonl"', "{}")],
    [("file", "; filename*=UTF-8''a%ff", "x" * 50), ("expires_after[anchor]", "", "created_at")],
    [("expires_after[seconds]", "", "3600"), ("other", "", "1"), ("purpose", "", "vision")],
]
#: At least this much of the code is reached, or something is wrong with the fuzzer.
LEAST_COVERAGE = 500


def write_corpus(folder: Path) -> Path:
    folder.mkdir()
    for number, (kind, body) in enumerate(BODIES):
        line = json.dumps({"custom_id": "a", "method": "POST", "url": ENDPOINTS[kind], "body": body})
        (folder / f"body-{number}").write_bytes(bytes([kind]) + line.encode() + b"\n")
    for number, parts in enumerate(UPLOADS):
        form = "".join(
            f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n{content}\r\n'
            for name, more, content in parts
        )
        (folder / f"upload-{number}").write_bytes(b"\2" + form.encode() + b"--b--\r\n")
    for number, template in enumerate((CHATML, ALTERNATING)):
        (folder / f"template-{number}").write_bytes(b"\3" + template.encode())
    (folder / "odd").write_bytes(b'\0\xef\xbb\xbf{"custom_id":"\\ud800","body":{"n":1e999}}\r\n\n[1]\n"\\u0000"\n')
    return folder


def write_dictionary(path: Path) -> Path:
    """The names that are looked for, so that they need not be found letter by letter."""
    names = sorted({name for _, body in BODIES for name in body} | {"custom_id", "method", "url", "body", "POST"})
    odd = [
        "\\xff",
        "\\\\ud800",
        "\\\\u0000",
        "1e999",
        "null",
        "[[[[",
        "\\x0a",
        "\\xef\\xbb\\xbf",
        "-9223372036854775809",
    ]
    path.write_text("".join(f'"\\"{name}\\":"\n' for name in names) + "".join(f'"{text}"\n' for text in odd))
    return path


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this machine")
def test_no_bytes_raise_anything_but_our_own_errors(tmp_path: Path, budget: Budget) -> None:
    target = Path(__file__).with_name("coverage_target.py")
    seconds = max(1, round(budget.seconds))
    found = tmp_path / "found"
    found.mkdir()
    number = next(budget.seeds())
    options = {
        "max_total_time": seconds,
        "seed": number % 2**31,
        "max_len": 4096,
        "timeout": 10,
        "rss_limit_mb": 2048,
        "dict": write_dictionary(tmp_path / "dictionary"),
        "artifact_prefix": f"{found}/",
        "print_final_stats": 1,
    }
    done = subprocess.run(
        [
            sys.executable,
            target,
            *(f"-{name}={value}" for name, value in options.items()),
            write_corpus(tmp_path / "corpus"),
        ],
        capture_output=True,
        text=True,
        timeout=seconds + 120,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, f"{[path.read_bytes() for path in found.iterdir()]}\n{said[-8000:]}"
    units, coverage = re.search(r"executed_units:\s+(\d+)", said), re.findall(r"\bcov: (\d+)", said)
    assert units is not None, said[-2000:]
    budget.num_inputs = int(units[1])
    budget.seconds_used_up()
    assert max(map(int, coverage), default=0) >= LEAST_COVERAGE, said[-2000:]
