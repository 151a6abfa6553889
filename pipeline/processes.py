"""Child processes that end with their parent, whatever ends it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from pipeline.errors import PipelineError

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_libc = ctypes.CDLL(None, use_errno=True)
#: What ends a process, or wakes it at a time; a child's own death is not among them.
_HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


class NotReadyError(PipelineError):
    """A process did not get ready in time."""


#: Below the range from which Linux takes the local ports of connections, so that a server that is restarted
#: finds its port free.
_PORTS = range(20_000, 32_000)
_given_ports: set[int] = set()


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a dying connection is no obstacle
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nothing listens on now and that this function has not returned before.

    Another process may take it first: whoever binds it must be ready to fail.
    """
    for _ in range(1_000):
        port = secrets.choice(_PORTS)
        if port not in _given_ports and port_is_free(port, host):
            _given_ports.add(port)
            return port
    raise PipelineError(f"No free port between {_PORTS.start} and {_PORTS.stop} on {host}.")


def end_with_parent_thread(sig: signal.Signals) -> None:
    """Have the kernel send this process `sig` when the thread that started it ends, even while it is stopped."""
    _libc.prctl(_PR_SET_PDEATHSIG, sig)


def name_process(name: str) -> None:
    """What `ps -o comm` and `top` show of this process, of which they keep 15 bytes."""
    _libc.prctl(_PR_SET_NAME, name.encode())


def resident_bytes(pid: int) -> int | None:
    """Main memory that a process has; None of one that is gone, or has ended and was not buried."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            return None if process.status() == psutil.STATUS_ZOMBIE else int(process.memory_info().rss)
    except psutil.Error:
        return None


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    log_path: Path | None = None,
    cwd: Path | None = None,
    run_as: pwd.struct_passwd | None = None,
    death_signal: signal.Signals = signal.SIGTERM,
) -> subprocess.Popen[bytes]:
    """Start `argv` in a session of its own, so that Ctrl-C reaches only the parent.

    The kernel sends it `death_signal` when the *thread* that called this ends, so call it from a thread that lasts.
    Output is appended to `log_path`, or thrown away.
    """
    parent = os.getpid()

    def die_with_parent() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        end_with_parent_thread(death_signal)
        if os.getppid() != parent:  # it ended before the line above
            os._exit(1)

    identity: dict[str, Any] = (
        {} if run_as is None else {"user": run_as.pw_uid, "group": run_as.pw_gid, "extra_groups": []}
    )
    process: subprocess.Popen[bytes] | None = None
    # Python drops what a signal's handler raises while its hooks around a fork run: an interrupt would be lost.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)  # raises, with the signals blocked, what came just before
        with contextlib.ExitStack() as stack:
            output: int = subprocess.DEVNULL
            if log_path is not None:
                output = stack.enter_context(log_path.open("ab")).fileno()
            process = subprocess.Popen(
                argv,
                env=None if env is None else dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,  # runs after the change of user, which clears the signal
                **identity,
            )
    finally:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        except BaseException:  # a held signal, whose handler raised: the caller will not know of the process
            if process is not None:
                process.kill()
                process.wait()
            raise
    return process


def stop(process: subprocess.Popen[bytes], *, sig: signal.Signals = signal.SIGTERM, timeout: float = 10.0) -> None:
    """Ask `process` to end, and kill it if it has not after `timeout` seconds."""
    if process.poll() is not None:
        return
    process.send_signal(sig)
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until(
    ready: Callable[[], bool],
    *,
    what: str,
    timeout: float,
    process: subprocess.Popen[bytes] | None,
    log_path: Path | None = None,
) -> None:
    """Wait for `ready()`. Raises NotReadyError after `timeout` seconds, or as soon as `process` has ended.

    The message has the end of its log, if there is one.
    """
    deadline = time.monotonic() + timeout
    while not ready():
        if process is not None and process.poll() is not None:
            reason = f"{what} ended with exit code {process.returncode} before it was ready."
            raise NotReadyError(reason + _end_of(log_path))
        if time.monotonic() > deadline:
            raise NotReadyError(f"{what} was not ready after {timeout:g} s." + _end_of(log_path))
        time.sleep(0.02)


def _end_of(log_path: Path | None) -> str:
    if log_path is None:
        return ""
    try:
        with log_path.open("rb") as file:
            file.seek(max(0, log_path.stat().st_size - 2_000))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError as error:
        return f" Its log {log_path} can't be read: {error.strerror}."
    return "\n".join([f" Its log {log_path} ends with:", *lines[-5:]])
