from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.processes import NotReadyError, resident_bytes, spawn, wait_until

#: Python drops what is raised in a hook around a fork; the interrupt comes in the middle of one.
INTERRUPTED_SPAWN = """
import os, signal, psutil
from pipeline.processes import spawn

os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGINT))
try:
    spawn(["sleep", "60"])
except KeyboardInterrupt:
    print("interrupted", psutil.Process().children(), signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""

MASK_OF_A_CHILD = """
import sys
from pipeline.processes import spawn

command = "import signal; raise SystemExit(len(signal.pthread_sigmask(signal.SIG_BLOCK, ())))"
raise SystemExit(spawn([sys.executable, "-c", command]).wait())
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)


def test_an_interrupt_while_a_process_is_started_is_not_lost_and_leaves_no_process() -> None:
    done = run(INTERRUPTED_SPAWN)

    assert done.stdout == "interrupted [] set()\n", done.stderr


def test_a_started_process_holds_no_signal() -> None:
    assert run(MASK_OF_A_CHILD).returncode == 0


def test_a_process_that_ends_too_early_is_quoted(tmp_path: Path) -> None:
    log_path = tmp_path / "log"
    process = spawn([sys.executable, "-c", "print('no such folder'); exit(3)"], log_path=log_path)
    with pytest.raises(NotReadyError, match=r"(?s)it ended with exit code 3 .* ends with:\nno such folder"):
        wait_until(lambda: False, what="it", timeout=60, process=process, log_path=log_path)


def test_only_a_process_that_lives_has_memory() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert resident_bytes(process.pid)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert resident_bytes(process.pid) is None, "it has ended, and is not buried"
    process.communicate()
    assert resident_bytes(process.pid) is None
