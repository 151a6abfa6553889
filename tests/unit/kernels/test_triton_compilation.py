"""In a process of its own, since Triton decides at its import whether it compiles or interprets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: there is none for this system")

#: The least that a GPU since Ampere has for one program (compute capability 8.6).
SHARED_BYTES = 99 * 2**10


def test_programs_compile_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    process = subprocess.run(
        [sys.executable, Path(__file__).parent / "triton_compilation.py"],
        cwd=root,
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4_000:]
    shared = {line: int(line.split()[-1]) for line in process.stdout.splitlines()}
    assert len(shared) == 21
    assert max(shared.values()) <= SHARED_BYTES, shared
