"""`/healthz` and `/readyz` of a group that is the process that `ryzanstein worker` runs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running_gateways import postgres_processes
from running_groups import wait_for
from running_workers import health_port
from seeds import seed_model
from sqlalchemy import Engine
from tokenizer_folders import byte_level

from pipeline.embedded import EmbeddedPostgres
from pipeline.fleet import want_drain
from pipeline.processes import spawn, stop
from pipeline.settings import PREFIX
from pipeline.tables.session import get_engine, transaction

#: What is promised is 2 s; a machine that is busy with other tests takes longer.
GENEROUS_SECONDS = 10.0


@pytest.fixture
def worker(
    own_postgres: EmbeddedPostgres, settings_env: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[subprocess.Popen[bytes]]:
    seed_model(get_engine())
    settings_env.setenv(PREFIX + "LEASE_SECONDS", "2")
    argv = [sys.executable, "-m", "workers", str(byte_level(tmp_path / "tiny")), "--engine", "echo"]
    process = spawn(argv, env=os.environ, log_path=tmp_path / "worker.log")
    yield process
    stop(process, timeout=30)


def ask(port: int, path: str = "/readyz") -> tuple[int, list[str]]:
    """Status, and reasons."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}{path}", timeout=30) as response:
            return response.status, json.load(response).get("reasons", [])
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["reasons"]


def freeze(server: EmbeddedPostgres) -> Callable[[], None]:
    pids = postgres_processes(server)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)

    def thaw() -> None:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    return thaw


def kill(server: EmbeddedPostgres) -> Callable[[], None]:
    for pid in postgres_processes(server):
        os.kill(pid, signal.SIGKILL)
    return lambda: server.start() and None


def test_a_group_is_not_ready_within_two_seconds_of_losing_postgresql(
    own_postgres: EmbeddedPostgres, worker: subprocess.Popen[bytes]
) -> None:
    port = health_port(get_engine())
    assert ask(port) == (200, [])
    for lose in (freeze, kill):
        began = time.monotonic()
        bring_back = lose(own_postgres)
        status, reasons = ask(port)
        seconds = time.monotonic() - began

        assert status == 503
        assert any(reason.startswith("PostgreSQL") for reason in reasons)
        assert seconds < GENEROUS_SECONDS
        print(f"{lose.__name__}: {status} after {seconds:.2f} s, {reasons}")
        assert ask(port, "/healthz") == (200, [])  # the process is no worse for it
        wait_for(lambda: any("leases" in reason for reason in ask(port)[1]))

        bring_back()
        wait_for(lambda: ask(port) == (200, []), timeout=60)
    assert worker.poll() is None


def test_a_drained_group_says_so(own_postgres: EmbeddedPostgres, worker: subprocess.Popen[bytes]) -> None:
    port = health_port(get_engine())
    for is_wanted, status in ((True, 503), (False, 200)):
        with transaction() as session:
            want_drain(session, "group-0", is_wanted=is_wanted)
        wait_for(lambda status=status: ask(port)[0] == status)
        if is_wanted:
            wait_for(lambda: ask(port)[1] == ["the group is drained"])
    assert ask(port, "/elsewhere") == (404, ["ask for /healthz, /readyz or /metrics"])


def test_a_port_that_is_taken_is_one_readable_line(
    database: Engine, redis_url: str, settings_env: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings_env.setenv(PREFIX + "WORKER_HEALTH_PORT", str(port))
        argv = [sys.executable, "-m", "workers", str(byte_level(tmp_path / "tiny")), "--engine", "echo"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"Can't listen on 127.0.0.1:{port} for health checks" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
