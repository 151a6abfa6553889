"""Runs Ryzanstein as a user would, through its command line, and leaves nothing of it behind."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pipeline.processes import spawn

#: The command that belongs to this interpreter, whatever the PATH says.
COMMAND = str(Path(sys.executable).parent / "ryzanstein")
START_SECONDS = 120.0
STOP_SECONDS = 45.0
REPORT_SECONDS = 60.0
NUM_LOG_LINES = 15


class StackError(Exception):
    """The stack did not do what it was asked to."""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A running stack, ready for batches."""

    data_dir: Path
    base_url: str
    api_key: str
    pids: dict[str, int]

    def report(self, *arguments: str) -> Any:
        """What `ryzanstein ARGUMENTS --json` says about this stack. Raises StackError where it says nothing."""
        command = [COMMAND, *arguments, "--data-dir", str(self.data_dir), "--json"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=REPORT_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise StackError(f"`ryzanstein {' '.join(arguments)}` took longer than {REPORT_SECONDS:g} s.") from None
        if done.returncode != 0:
            raise StackError(f"`ryzanstein {' '.join(arguments)}` failed: {done.stderr.strip() or done.stdout.strip()}")
        return json.loads(done.stdout)


@contextmanager
def running_stack(model: Path, *, num_ranks: int) -> Iterator[Stack]:
    """A stack of one group in a temporary folder on free ports; stopped and removed at the end, whatever ends it.

    Raises StackError with the end of its log if it does not get ready. A kill that runs no Python is covered too: the
    kernel then stops the stack, and only the temporary folder stays.
    """
    folder = Path(tempfile.mkdtemp(prefix="ryzanstein-demo-"))
    # Started by root, PostgreSQL runs as a user of its own, who must be able to walk through.
    folder.chmod(0o711)
    data_dir, log_path = folder / "data", folder / "up.log"
    log_path.touch(mode=0o600)  # it will hold the key
    command = [COMMAND, "up", "--data-dir", str(data_dir), "--model", str(model)]
    process: subprocess.Popen[bytes] | None = None
    try:
        process = spawn([*command, "--tp", str(num_ranks), "--port", "0", "--json"], log_path=log_path)
        yield _wait_until_ready(process, data_dir, log_path)
    finally:
        with _undisturbed():
            if process is not None:
                _stop(process)
            shutil.rmtree(folder, ignore_errors=True)


def _wait_until_ready(process: subprocess.Popen[bytes], data_dir: Path, log_path: Path) -> Stack:
    deadline = time.monotonic() + START_SECONDS
    while True:
        ended = process.poll() is not None
        log = log_path.read_text(encoding="utf-8", errors="replace")
        for line in log.splitlines(keepends=True):
            if line.startswith("{") and line.endswith("\n"):
                ready = json.loads(line)
                return Stack(
                    data_dir=data_dir, base_url=ready["base_url"], api_key=ready["api_key"], pids=ready["pids"]
                )
        if ended or time.monotonic() > deadline:
            why = f"ended with exit code {process.returncode}" if ended else f"was not ready after {START_SECONDS:g} s"
            tail = "\n".join(log.splitlines()[-NUM_LOG_LINES:])
            raise StackError(f"`ryzanstein up` {why}. The end of its log:\n{tail}")
        time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Asks the stack to stop, waits, and kills what is left of it."""
    family = _family(process.pid)
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            family += _family(process.pid)
            process.kill()
            process.wait()
    _, alive = psutil.wait_procs(family, timeout=5)
    for left in alive:
        left.kill()
    psutil.wait_procs(alive, timeout=5)


def _family(pid: int) -> list[psutil.Process]:
    """All processes below one. A psutil.Process knows its start time, so a reused pid is never taken for it."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Cleaning up is not interrupted by a second Ctrl-C."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
