"""Runs a supervisor in the background, and waits for its word."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from typing import Any

from pipeline.errors import UserError
from pipeline.stack.data_dir import DataDir
from pipeline.stack.options import StackOptions
from pipeline.stack.running import run_stack
from pipeline.stack.supervisor import StackError


def start_detached(options: StackOptions) -> dict[str, Any]:
    """Start a stack that outlives this process, and return its report once everything answers.

    Raises UserError with what the supervisor says if it can't be started. Interrupted, it stops what it started.
    """
    data_dir = DataDir(options.data_dir)
    data_dir.create()
    log_path = data_dir.log("supervisor")
    read_end, write_end = os.pipe()
    pid = os.fork()  # this process has one thread, and so a copy of it is whole
    if pid == 0:
        os.close(read_end)
        _supervise(options, write_end, log_path)
    os.close(write_end)
    with open(read_end) as pipe:
        try:
            word = pipe.readline()
        except KeyboardInterrupt:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)
            raise
    if not word:
        os.waitpid(pid, 0)
        raise StackError(f"The supervisor ended before the stack was ready. Its log is {log_path}.")
    said = json.loads(word)
    if "error" in said:
        os.waitpid(pid, 0)
        raise UserError(said["error"])
    report: dict[str, Any] = said["report"]
    return report


def _supervise(options: StackOptions, pipe: int, log_path: os.PathLike[str]) -> None:
    """The life of the background process; does not return."""
    os.setsid()
    null, log = os.open(os.devnull, os.O_RDONLY), os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)

    def say(word: dict[str, Any]) -> None:
        os.write(pipe, json.dumps(word).encode() + b"\n")

    status = 1
    try:
        run_stack(options, on_ready=lambda report: say({"report": report}))
        status = 0
    except UserError as error:
        say({"error": str(error)})
    except BaseException:  # noqa: BLE001  the process ends here either way, and must not run the code of its parent
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(status)
