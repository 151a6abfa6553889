"""`ryzanstein down`: stops a stack from outside, whether or not its supervisor still lives."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import psutil

from pipeline.stack.data_dir import DataDir, DataDirError
from pipeline.stack.leftovers import end_processes_of


def stop_stack(data_dir: DataDir, *, patience: float) -> bool:
    """Stop everything that runs in this data folder; returns whether there was anything. Again is fine.

    After `patience` seconds the supervisor is killed, and with it everything that it started.
    """
    secrets = data_dir.load_secrets()
    pid = data_dir.supervisor_pid()
    if pid is not None:
        _end_supervisor(pid, patience)
    orphans = 0 if secrets is None else end_processes_of(secrets.stack_id, patience=5.0 if pid is None else 2.0)
    return pid is not None or orphans > 0


def _end_supervisor(pid: int, patience: float) -> None:
    try:
        supervisor = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    try:
        supervisor.send_signal(signal.SIGTERM)
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied:
        raise DataDirError(f"The stack is another user's (process {pid}); stop it as that user.") from None
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if not supervisor.is_running() or supervisor.status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.05)
    else:
        supervisor.kill()
    # Our own child where the caller started it detached from the same process.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
