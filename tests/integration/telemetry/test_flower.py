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
from pipeline.settings import PREFIX, Settings, get_settings
from pipeline.telemetry.flower_access import access_options
from pipeline.telemetry.flower_events import state_file

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


class RunningFlower:
    """`ryzanstein flower` with these settings; `start` may be called again after `stop`."""

    def __init__(self, folder: Path, env: pytest.MonkeyPatch, **settings: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = folder / "flower.log"
        self.process: subprocess.Popen[bytes] | None = None
        for name, value in {"port": str(self.port), "password": PASSWORD, **settings}.items():
            env.setenv(f"{PREFIX}FLOWER_{name.upper()}", value)
        env.setenv("FLOWER_UNAUTHENTICATED_API", "true")
        get_settings.cache_clear()

    def start(self) -> None:
        argv = [sys.executable, "-m", "pipeline.cli", "flower"]
        self.process = spawn(argv, log_path=self.log_path, env=os.environ)
        wait_for(lambda: status(f"{self.url}/healthcheck", None) == 200)

    def stop(self) -> None:
        if self.process is not None:
            stop(self.process)
            assert self.process.returncode == 0, self.log()
            self.process = None

    def log(self) -> str:
        return self.log_path.read_text()


@pytest.fixture
def make_flower_process(
    database: Engine, redis_url: str, settings_env: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., RunningFlower]]:
    made: list[RunningFlower] = []

    def make(**settings: str) -> RunningFlower:
        made.append(RunningFlower(tmp_path, settings_env, **settings))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def control(database: Engine, redis_url: str, settings_env: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    argv = [sys.executable, "-m", "pipeline.cli", "control"]
    process = spawn(argv, log_path=tmp_path / "control.log", env=os.environ)
    yield
    stop(process)


def sweep_once(flower: RunningFlower) -> dict[str, Any]:
    """A task that control has run, as Flower shows it; one that ran before Flower listened has no name."""
    app.conf.broker_url = get_settings().redis_url.get_secret_value()
    app.send_task(SWEEP, queue=queue("control"), argsrepr="")

    def ended() -> dict[str, Any] | None:
        tasks = get(f"{flower.url}/api/tasks").values()
        return next((task for task in tasks if (task["name"], task["state"]) == (SWEEP, "SUCCESS")), None)

    return dict(wait_for(ended))


def test_workers_that_come_later_their_queues_and_tasks_are_shown(
    make_flower_process: Callable[..., RunningFlower], request: pytest.FixtureRequest
) -> None:
    flower = make_flower_process()
    request.getfixturevalue("control")
    workers = wait_for(
        lambda: next((w for w in get(f"{flower.url}/api/workers").items() if w[1].get("active_queues")), None)
    )
    task = sweep_once(flower)
    names = {task["name"] for task in get(f"{flower.url}/api/tasks").values()}
    queues = get(f"{flower.url}/api/queues/length")["active_queues"]

    assert workers[0].startswith("control@")
    assert task["result"].startswith("{")
    assert RELAY not in names
    assert None not in names
    assert [queue["name"] for queue in queues] == ["control"]


def test_nobody_looks_without_the_password_and_nobody_may_change_anything(
    make_flower_process: Callable[..., RunningFlower],
) -> None:
    flower = make_flower_process()
    assert flower.process is not None

    for path in ("/", "/workers", "/tasks", "/broker", "/api/workers", "/api/tasks", "/metrics"):
        assert status(flower.url + path, None) == 401, path
        assert status(flower.url + path, "wrong") == 401, path
        assert status(flower.url + path, PASSWORD) == 200, path
    assert status(f"{flower.url}/api/worker/shutdown/control@here", PASSWORD, "POST") == 403
    assert status(f"{flower.url}/api/task/send-task/{RELAY}", PASSWORD, "POST") == 403
    assert PASSWORD not in " ".join(psutil.Process(flower.process.pid).cmdline())


def test_who_is_told_so_may_change_things_and_the_log_warns_of_it(
    make_flower_process: Callable[..., RunningFlower],
) -> None:
    flower = make_flower_process(read_only="false")

    # There is no such worker, which is looked at after who may ask.
    assert status(f"{flower.url}/api/worker/shutdown/control@here", PASSWORD, "POST") == 404
    assert status(f"{flower.url}/api/worker/shutdown/control@here", None, "POST") == 401
    assert "Flower is not read-only" in flower.log()


def test_what_was_seen_is_there_after_a_restart(
    make_flower_process: Callable[..., RunningFlower], control: None, tmp_path: Path
) -> None:
    flower = make_flower_process(state_dir=str(tmp_path / "state"))
    seen = sweep_once(flower)
    flower.stop()
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0

    flower.start()

    again = get(f"{flower.url}/api/task/info/{seen['uuid']}")
    assert (again["name"], again["state"], again["received"]) == (SWEEP, "SUCCESS", seen["received"])


def test_a_memory_that_is_spoiled_is_put_aside_with_a_word(
    make_flower_process: Callable[..., RunningFlower], tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    (folder / "events").write_bytes(b"\x00no database\xff" * 1000)

    flower = make_flower_process(state_dir=str(folder))

    assert "moving it aside" in flower.log()
    assert (folder / "events.corrupt").exists()
    assert get(f"{flower.url}/api/tasks") == {}


def test_a_memory_that_others_may_write_to_is_not_read(settings_env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(0o777)

    with pytest.raises(ConfigurationError, match="RYZANSTEIN_FLOWER_STATE_DIR"):
        state_file(Settings(flower_state_dir=folder))


def test_flower_wants_a_password(settings_env: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="RYZANSTEIN_FLOWER_PASSWORD"):
        access_options(Settings())
