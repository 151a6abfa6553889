"""Flower over HTTP, with a real worker beside it."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import psutil
import pytest
from sqlalchemy import Engine

from pipeline.celery import RELAY, SWEEP, app, queue
from pipeline.errors import ConfigurationError
from pipeline.processes import free_port, spawn, stop
from pipeline.settings import PREFIX, get_settings

PASSWORD = "open-sesame"


def get(url: str, password: str | None = PASSWORD) -> Any:
    request = urllib.request.Request(url)
    if password is not None:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"ryzanstein:{password}".encode()).decode())
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.loads(response.read() or "null")


def status(url: str, password: str | None, method: str = "GET") -> int:
    request = urllib.request.Request(url, method=method)
    if password is not None:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"ryzanstein:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.status)
    except HTTPError as error:
        return error.code


def wait_for(condition: Callable[[], Any], limit: float = 30) -> Any:
    deadline = time.monotonic() + limit
    while True:
        try:
            if found := condition():
                return found
        except OSError:
            pass
        assert time.monotonic() < deadline, f"still waiting after {limit} s"
        time.sleep(0.1)


@pytest.fixture
def flower(
    database: Engine, redis_url: str, settings_env: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    settings_env.setenv(PREFIX + "FLOWER_PORT", str(port))
    settings_env.setenv(PREFIX + "FLOWER_PASSWORD", PASSWORD)
    settings_env.setenv("FLOWER_UNAUTHENTICATED_API", "true")
    get_settings.cache_clear()
    process = spawn([sys.executable, "-m", "pipeline.cli", "flower"], log_path=tmp_path / "flower.log", env=os.environ)
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: status(f"{url}/healthcheck", None) == 200)
    yield url, process
    stop(process)
    assert process.returncode == 0


def test_workers_that_come_later_their_queues_and_tasks_are_shown(
    flower: tuple[str, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    url, _ = flower
    control = spawn(
        [sys.executable, "-m", "pipeline.cli", "control"], log_path=tmp_path / "control.log", env=os.environ
    )
    try:
        workers = wait_for(
            lambda: next((w for w in get(f"{url}/api/workers").items() if w[1].get("active_queues")), None)
        )
        app.conf.broker_url = get_settings().redis_url.get_secret_value()
        app.send_task(SWEEP, queue=queue("control"), argsrepr="")
        task = wait_for(lambda: next((t for t in get(f"{url}/api/tasks").values() if t["state"] == "SUCCESS"), None))
        names = {task["name"] for task in get(f"{url}/api/tasks").values()}
        queues = get(f"{url}/api/queues/length")["active_queues"]
    finally:
        stop(control)

    assert workers[0].startswith("control@")
    assert task["name"] == SWEEP
    assert RELAY not in names
    assert None not in names
    assert [queue["name"] for queue in queues] == ["control"]


def test_nobody_looks_without_the_password_and_nobody_may_change_anything(
    flower: tuple[str, subprocess.Popen[bytes]],
) -> None:
    url, process = flower

    for path in ("/", "/workers", "/tasks", "/broker", "/api/workers", "/api/tasks"):
        assert status(url + path, None) == 401, path
        assert status(url + path, "wrong") == 401, path
        assert status(url + path, PASSWORD) == 200, path
    assert status(f"{url}/api/worker/shutdown/control@here", PASSWORD, "POST") == 403
    assert status(f"{url}/api/task/send-task/{RELAY}", PASSWORD, "POST") == 403
    assert PASSWORD not in " ".join(psutil.Process(process.pid).cmdline())


def test_flower_wants_a_password(settings_env: pytest.MonkeyPatch) -> None:
    from pipeline.telemetry.flower import make_flower

    with pytest.raises(ConfigurationError, match="RYZANSTEIN_FLOWER_PASSWORD"):
        make_flower()
