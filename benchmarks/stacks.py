"""A stack of its own for a benchmark, batches as a client sends them, and what each process of it costs."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import openai
import psutil

from pipeline.processes import NotReadyError, spawn, stop, wait_until

MAX_SECONDS = 900.0


@contextmanager
def running_stack(model: Path, *arguments: str) -> Iterator[dict[str, Any]]:
    """`ryzanstein up` with these arguments in a temporary folder; what `--json` printed."""
    folder = Path(tempfile.mkdtemp(prefix="ryzanstein-benchmark-"))
    folder.chmod(0o711)  # started by root, PostgreSQL runs as a user of its own
    argv = [sys.executable, "-m", "pipeline.cli", "up", "--data-dir", str(folder / "data"), "--port", "0", "--json"]
    log_path = folder / "up.log"
    log_path.touch(mode=0o600)  # it will hold the key
    # Ends with this process, whatever ends it.
    process = spawn([*argv, "--model", str(model), *arguments], log_path=log_path)
    try:
        wait_until(lambda: _report(log_path) is not None, what="The stack", timeout=120, process=process)
        yield _report(log_path) or {}
    except NotReadyError as error:
        raise SystemExit(f"{error}\n{log_path.read_text()}") from None
    finally:
        stop(process, timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def run_batch(
    client: openai.OpenAI,
    lines: Sequence[bytes],
    endpoint: Literal["/v1/chat/completions", "/v1/completions"],
    poll_seconds: float,
) -> tuple[float, float]:
    """Seconds from submission to completion, and those of the upload before."""
    began = time.perf_counter()
    uploaded = client.files.create(file=("requests.jsonl", b"".join(lines)), purpose="batch")
    submitted = time.perf_counter()
    batch = client.batches.create(input_file_id=uploaded.id, endpoint=endpoint, completion_window="24h")
    while batch.status in ("validating", "in_progress", "finalizing"):
        time.sleep(poll_seconds)
        batch = client.batches.retrieve(batch.id)
        if time.perf_counter() - submitted > MAX_SECONDS:
            raise TimeoutError(f"The batch was {batch.status} after {MAX_SECONDS:g} s.")
    ended = time.perf_counter()
    counts = batch.request_counts
    if batch.status != "completed" or counts is None or counts.completed != len(lines):
        raise RuntimeError(f"The batch ended {batch.status} with {counts}.")
    return ended - submitted, submitted - began


def request_line(number: int, endpoint: str, body: dict[str, Any]) -> bytes:
    request = {"custom_id": f"request-{number}", "method": "POST", "url": endpoint, "body": body}
    return json.dumps(request).encode() + b"\n"


def cpu_times(pids: dict[str, int]) -> dict[str, float]:
    """Processor seconds by process, those of its children among them."""
    used: dict[str, float] = {}
    for name, pid in pids.items():
        if name == "supervisor":
            continue
        process = psutil.Process(pid)
        # Of children: those that run, and (fields 3 and 4) those that have ended.
        used[name] = sum(process.cpu_times()[:4])
        used[name] += sum(sum(child.cpu_times()[:2]) for child in process.children(recursive=True))
    return used


def peak_mb(pid: int) -> float:
    """The most memory that a process had at once, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    (kilobytes,) = [row.split()[1] for row in status.splitlines() if row.startswith("VmHWM:")]
    return int(kilobytes) / 1024


def _report(log_path: Path) -> dict[str, Any] | None:
    """What `up --json` printed, once it has."""
    lines = [line for line in log_path.read_text().splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else None
