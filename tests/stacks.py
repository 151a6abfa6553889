"""Runs whole stacks through the command line, as a user would, and holds them to leaving nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import openai
import psutil

from pipeline.stack.data_dir import DataDir
from pipeline.stack.fleet import Fleet
from pipeline.stack.leftovers import end_processes_of, processes_of
from pipeline.stack.report import report, stopped_report
from pipeline.stack.state import find_state

CLI = (sys.executable, "-m", "pipeline.cli")
#: Leases so short that a test can wait for one to end, and everything that follows from it as quick.
QUICK = {
    "RYZANSTEIN_LEASE_SECONDS": "3",
    "RYZANSTEIN_SWEEP_SECONDS": "1",
    "RYZANSTEIN_RELAY_SECONDS": "0.5",
    "RYZANSTEIN_KV_CACHE_TOKENS": "8192",
    "OMP_NUM_THREADS": "1",
}
T = TypeVar("T")

#: Generous: the machine may be busy with other tests.
START_SECONDS = 120.0


def wait_for(condition: Callable[[], T | None], what: str, limit: float = 60.0) -> T:
    """The first true value of `condition()`."""
    deadline = time.monotonic() + limit
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: still waiting after {limit:g} s"
        time.sleep(0.1)
    return found


@dataclass
class RunningStack:
    """One stack in a data folder of its own; `up` may be called again after it has ended."""

    data_dir: Path
    model: Path
    options: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None

    @property
    def up_argv(self) -> list[str]:
        return [
            *(*CLI, "up", "--data-dir", str(self.data_dir), "--model", str(self.model), "--port", "0", "--json"),
            *self.options,
        ]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **QUICK, **self.env}

    def up(self) -> dict[str, Any]:
        """Start it in the foreground of a process of its own, and wait for its word."""
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        errors = self.data_dir.with_name(f"{self.data_dir.name}.stderr")
        with errors.open("a") as stderr:  # a pipe that nobody reads would fill and stop the supervisor
            self.process = subprocess.Popen(
                self.up_argv, env=self.environment, stdout=subprocess.PIPE, stderr=stderr, text=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.communicate(timeout=30)
            raise AssertionError(f"up ended with {self.process.returncode}: {errors.read_text()}\n{self.logs()}")
        self.report = json.loads(line)
        return self.report

    def run(self, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """A command about this stack."""
        argv = [*CLI, *args, "--data-dir", str(self.data_dir)]
        return subprocess.run(
            argv, env=self.environment, capture_output=True, text=True, timeout=START_SECONDS, **options
        )

    def status(self) -> dict[str, Any]:
        """What `ryzanstein status --json` prints, without the start of a process for each look."""
        data_dir = DataDir(self.data_dir)
        state, supervisor_pid = find_state(data_dir), data_dir.supervisor_pid()
        if state is None or supervisor_pid is None:
            return stopped_report(data_dir, state)
        fleet = Fleet(state.database_url)
        try:
            return report(state, supervisor_pid, fleet)
        finally:
            fleet.close()

    def client(self, api_key: str | None = None) -> openai.OpenAI:
        """The stock client, with the first key or another; a proxy of the environment knows nothing of our ports."""
        return openai.OpenAI(
            base_url=self.report["base_url"],
            api_key=api_key or self.report["api_key"],
            max_retries=2,
            http_client=openai.DefaultHttpxClient(trust_env=False),
        )

    def create_key(self, tenant: str) -> str:
        """A key of this tenant, which is made where it is not there."""
        made = self.run("keys", "create", "--tenant", tenant, "--json", check=True)
        return str(json.loads(made.stdout)["key"])

    def pid(self, name: str) -> int | None:
        """The pid of a process that `up` started, by what the supervisor wrote last: needs no database."""
        state = find_state(DataDir(self.data_dir))
        process = None if state is None else state.processes.get(name)
        return None if process is None else process.pid

    def kill(self, *names: str) -> dict[str, int]:
        """SIGKILL processes by name, all at once; returns the pids that they had."""
        pids = self.status()["pids"]
        for name in names:
            os.kill(pids[name], signal.SIGKILL)
        return {name: pids[name] for name in names}

    def wait_until_back(self, killed: dict[str, int], limit: float = 60.0) -> dict[str, Any]:
        """Wait until all of these run as other processes; returns the status."""

        def is_back() -> dict[str, Any] | None:
            status = self.status()
            for name, old_pid in killed.items():
                process = status["processes"].get(name, {})
                if process.get("state") != "running" or process.get("pid") in (None, old_pid):
                    return None
            return status

        return wait_for(is_back, f"{', '.join(killed)} back", limit)

    def interrupt(self, sig: signal.Signals = signal.SIGINT) -> int:
        """End the foreground process in order; returns its exit code."""
        assert self.process is not None
        self.process.send_signal(sig)
        self.process.communicate(timeout=60)
        return self.process.returncode

    def left(self) -> list[str]:
        """What runs of it now, as command lines."""
        lines = []
        if secrets := DataDir(self.data_dir).load_secrets():
            for process in processes_of(secrets.stack_id):
                with contextlib.suppress(psutil.NoSuchProcess):
                    lines.append(" ".join(process.cmdline()))
        return lines

    def logs(self) -> str:
        """The ends of all logs, for a person who reads why a test failed."""
        parts = []
        for path in sorted(DataDir(self.data_dir).logs.glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()[-25:]
            parts.append(f"--- {path.name}\n" + "\n".join(lines))
        return "\n".join(parts)

    def end(self) -> None:
        """End it whatever state it is in, and raise if it has left anything behind."""
        was_running = self.process is not None and self.process.poll() is None
        try:
            if was_running:
                self.interrupt()
            self.run("down")
            assert self.left() == []
        finally:
            if self.process is not None and self.process.poll() is None:
                self.process.kill()
                self.process.communicate()
            if secrets := DataDir(self.data_dir).load_secrets():
                end_processes_of(secrets.stack_id, patience=0)
