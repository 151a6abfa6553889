from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 180.0


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A running demo, as `make demo` starts it; all that it starts has a TMPDIR of its own in its environment."""
    (tmp_path / "tmp").mkdir()
    tmp_path.chmod(0o711)
    command = [sys.executable, "-m", "examples.invoices.demo", "--folder", str(tmp_path / "output")]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp"), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    yield process
    for left in processes_of(tmp_path):
        left.kill()
    process.communicate()


def processes_of(tmp_path: Path) -> list[psutil.Process]:
    """What still runs of all that a demo started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("TMPDIR") == str(tmp_path / "tmp") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def wait_until_gone(tmp_path: Path) -> None:
    deadline = time.monotonic() + 60
    while left := processes_of(tmp_path):
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.1)


def read_until(process: subprocess.Popen[str], text: str) -> None:
    """Reads what the demo prints up to a line that holds a text."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return
    raise AssertionError(f"the demo ended without {text!r}:\n{seen}")


def test_the_demo_answers_a_batch_and_leaves_its_files_and_no_process(
    demo: subprocess.Popen[str], tmp_path: Path
) -> None:
    printed, _ = demo.communicate(timeout=LIMIT_SECONDS)

    assert demo.returncode == 0, printed
    assert processes_of(tmp_path) == []
    assert list((tmp_path / "tmp").glob("ryzanstein-demo-*")) == []
    output = [json.loads(line) for line in (tmp_path / "output" / "output.jsonl").read_text().splitlines()]
    assert len(output) == 300
    assert (tmp_path / "output" / "errors.jsonl").read_bytes() == b""
    (bill,) = json.loads((tmp_path / "output" / "bill.json").read_text())
    assert sum(line["requests"] for line in bill["lines"]) == 300
    for part in ("300 of 300 requests", "Usage", "Bill of default"):
        assert part in printed
    accuracy = re.search(r"([\d.]+)% of the answers are exactly right", " ".join(printed.split()))
    assert accuracy is not None, printed
    assert float(accuracy[1]) >= 95


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_demo_leaves_no_process(
    number: signal.Signals, demo: subprocess.Popen[str], tmp_path: Path
) -> None:
    read_until(demo, "Running:")

    demo.send_signal(number)
    demo.communicate(timeout=LIMIT_SECONDS)

    assert demo.returncode == 128 + number
    assert processes_of(tmp_path) == []
    assert list((tmp_path / "tmp").glob("ryzanstein-demo-*")) == []


def test_a_killed_demo_leaves_no_process(demo: subprocess.Popen[str], tmp_path: Path) -> None:
    read_until(demo, "Running:")

    demo.kill()

    wait_until_gone(tmp_path)


def test_a_demo_interrupted_while_it_starts_leaves_no_process(demo: subprocess.Popen[str], tmp_path: Path) -> None:
    read_until(demo, "Starting")

    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=LIMIT_SECONDS)

    assert demo.returncode == 128 + signal.SIGINT
    wait_until_gone(tmp_path)
