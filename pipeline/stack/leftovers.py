"""Finds processes of a stack whose supervisor is gone, by a mark in their environment, and ends them."""

from __future__ import annotations

import contextlib
import signal
import time

import psutil

#: Every process of a stack carries this variable; its value is the stack's id. No name of a setting begins like this.
MARK = "_RYZANSTEIN_STACK"


def processes_of(stack_id: str) -> list[psutil.Process]:
    """The processes that carry the mark of this stack, and their descendants (PostgreSQL's overwrite the mark).

    The supervisor carries none: it sets the variable for others only.
    """
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == stack_id and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = process
                found.update({child.pid: child for child in process.children(recursive=True)})
    return list(found.values())


def end_processes_of(stack_id: str, *, patience: float) -> int:
    """End what is left of a stack; returns how many processes there were.

    They end by themselves when their supervisor does, which is waited for, `patience` seconds at most.
    """
    leftovers = processes_of(stack_id)
    count = len(leftovers)
    _, leftovers = psutil.wait_procs(leftovers, timeout=patience)
    # PostgreSQL's fast shutdown comes first: killed, it would have to recover at its next start.
    servers = [process for process in leftovers if _name(process) == "postgres"]
    _signal([process for process in leftovers if process not in servers], signal.SIGKILL)
    _signal(servers, signal.SIGINT)
    psutil.wait_procs(servers, timeout=10)
    deadline = time.monotonic() + 10
    while (leftovers := processes_of(stack_id)) and time.monotonic() < deadline:
        _signal(leftovers, signal.SIGKILL)
        psutil.wait_procs(leftovers, timeout=1)
    return count


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return process.name()
    return ""


def _signal(processes: list[psutil.Process], sig: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(sig)
