from __future__ import annotations

import subprocess
import sys

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
