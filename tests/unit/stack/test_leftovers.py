from __future__ import annotations

import os
import subprocess
import sys

from pipeline.embedded import new_password
from pipeline.stack.leftovers import MARK, end_processes_of, processes_of

#: A child without the mark, as PostgreSQL's are, and a parent that does not end by itself.
_FAMILY = (
    "import os, subprocess, sys, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'], env={});"
    "print(child.pid, flush=True); signal.pause()"
)


def test_marked_processes_and_their_children_are_found_and_ended() -> None:
    stack_id, other_id = new_password(), new_password()
    argv = [sys.executable, "-c", _FAMILY]
    ours = subprocess.Popen(argv, env={**os.environ, MARK: stack_id}, stdout=subprocess.PIPE, text=True)
    other = subprocess.Popen(argv, env={**os.environ, MARK: other_id}, stdout=subprocess.PIPE, text=True)
    assert ours.stdout is not None
    assert other.stdout is not None
    child, _ = int(ours.stdout.readline()), int(other.stdout.readline())

    assert {process.pid for process in processes_of(stack_id)} == {ours.pid, child}
    assert end_processes_of(stack_id, patience=0.1) == 2

    ours.wait(60)  # whose status may be gone: psutil waits for the same child
    assert processes_of(stack_id) == []
    assert len(processes_of(other_id)) == 2
    assert end_processes_of(other_id, patience=0) == 2
    other.wait(60)


def test_nothing_is_left_of_nothing() -> None:
    assert end_processes_of(new_password(), patience=0) == 0
