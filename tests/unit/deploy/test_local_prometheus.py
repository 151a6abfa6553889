"""`python -m deploy.prometheus.local`, where it can't do what it is asked; tests/observability has it work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def run(data_dir: Path, path: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "deploy.prometheus.local", "--data-dir", str(data_dir)]
    return subprocess.run(argv, cwd=ROOT, env={"PATH": path}, capture_output=True, text=True, timeout=60)


def test_without_prometheus_it_says_what_to_install(tmp_path: Path) -> None:
    done = run(tmp_path, str(tmp_path))

    assert done.returncode == 1
    assert "Debian's package is called prometheus" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_stack_it_says_how_to_start_one(tmp_path: Path) -> None:
    program = tmp_path / "prometheus"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)

    done = run(tmp_path / "data", str(tmp_path))

    assert done.returncode == 1
    assert "ryzanstein up" in done.stderr
    assert "Traceback" not in done.stderr
