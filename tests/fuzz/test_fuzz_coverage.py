"""The reader and checker of lines, fuzzed by coverage: atheris finds the bytes that reach code not reached before."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from budget import Budget

BODIES = {
    0: {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "stop": ["x"], "n": 2},
    1: {"model": "tiny", "prompt": [1, 2], "logit_bias": {"5": -1.5}, "seed": -1, "top_p": 0.5, "user": None},
}
URLS = {0: "/v1/chat/completions", 1: "/v1/completions"}


def write_corpus(folder: Path) -> Path:
    """What the first changes are made to."""
    folder.mkdir()
    for kind, body in BODIES.items():
        line = json.dumps({"custom_id": "a", "method": "POST", "url": URLS[kind], "body": body})
        (folder / f"good-{kind}").write_bytes(bytes([kind]) + line.encode() + b"\n")
    (folder / "odd").write_bytes(b'\0\xef\xbb\xbf{"custom_id":"\\ud800","body":{"n":1e999}}\r\n\n[1]\n"\\u0000"\n')
    return folder


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed: the extra `fuzz`")
def test_no_bytes_raise_anything_but_our_own_errors(tmp_path: Path, budget: Budget) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    target = Path(__file__).with_name("coverage_target.py")
    seconds = max(1, round(budget.seconds))
    number = next(budget.seeds())
    done = subprocess.run(
        [
            sys.executable,
            target,
            f"-max_total_time={seconds}",
            f"-seed={number % 2**31}",
            "-max_len=4096",
            "-timeout=10",
            "-rss_limit_mb=2048",
            f"-artifact_prefix={tmp_path}/",
            "-print_final_stats=1",
            str(corpus),
        ],
        capture_output=True,
        text=True,
        timeout=seconds + 120,
        check=False,
    )
    found = [path.read_bytes() for path in tmp_path.iterdir() if path.is_file()]
    assert done.returncode == 0, f"{found}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    units = re.search(r"stat::number_of_executed_units:\s+(\d+)", done.stderr + done.stdout)
    assert units is not None, done.stderr[-2000:]
    budget.num_inputs = int(units[1])
    budget.seconds_used_up()
    assert budget.num_inputs > 100
