"""Flower over HTTP, with a real worker beside it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import SecretStr
from running_flower import PASSWORD, RunningFlower, get, status, wait_for
from sqlalchemy import Engine

from pipeline.celery import RELAY, SWEEP, app, queue
from pipeline.errors import ConfigurationError
from pipeline.processes import free_port, spawn, stop
from pipeline.settings import Settings, get_settings
from pipeline.telemetry.flower_access import access_options
from pipeline.telemetry.flower_events import SAVE_MS, LastingEvents, state_file
from pipeline.telemetry.flower_metrics import read_flower_metrics


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


def test_workers_that_come_later_are_shown_and_all_that_was_seen_after_a_restart_too(
    make_flower_process: Callable[..., RunningFlower], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    flower = make_flower_process(state_dir=str(tmp_path / "state"))
    request.getfixturevalue("control")
    workers = wait_for(
        lambda: next((w for w in get(f"{flower.url}/api/workers").items() if w[1].get("active_queues")), None)
    )
    seen = sweep_once(flower)
    names = {task["name"] for task in get(f"{flower.url}/api/tasks").values()}
    queues = get(f"{flower.url}/api/queues/length")["active_queues"]

    assert workers[0].startswith("control@")
    assert seen["result"].startswith("{")
    assert RELAY not in names
    assert None not in names
    assert [queue["name"] for queue in queues] == ["control"]

    flower.stop()
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0
    flower.start(read_only="false")

    again = get(f"{flower.url}/api/task/info/{seen['uuid']}")
    assert (again["name"], again["state"], again["received"]) == (SWEEP, "SUCCESS", seen["received"])
    # Now it may change things. There is no such worker, which is looked at after who may ask.
    assert status(f"{flower.url}/api/worker/shutdown/control@nowhere", PASSWORD, "POST") == 404
    assert status(f"{flower.url}/api/worker/shutdown/control@nowhere", None, "POST") == 401
    assert "Flower is not read-only" in flower.log()


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

    # Control's port shows its metrics to who has no password.
    settings = get_settings()
    assert b"flower_" in (read_flower_metrics(settings) or b"")
    assert read_flower_metrics(settings.model_copy(update={"flower_password": SecretStr("wrong")})) is None
    assert read_flower_metrics(settings.model_copy(update={"flower_port": free_port()})) is None


def make_events(file: Path) -> LastingEvents:
    return LastingEvents(
        app,
        on_worker=lambda *_: None,
        io_loop=None,
        db=str(file),
        persistent=True,
        state_save_interval=SAVE_MS,
        max_tasks_in_memory=10,
    )


def test_a_memory_that_is_spoiled_is_put_aside_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_events(tmp_path / "events").save_state()
    # Which files there are is for the system's dbm to say.
    spoiled = max(tmp_path.iterdir(), key=lambda path: path.stat().st_size)
    spoiled.write_bytes(b"\x00no database\xff" * 1000)

    events = make_events(tmp_path / "events")

    assert len(events.state.tasks) == 0
    assert "moving it aside" in caplog.text
    assert spoiled.with_name(f"{spoiled.name}.corrupt").exists()
    events.save_state()
    assert make_events(tmp_path / "events").state is not None
    assert caplog.text.count("moving it aside") == 1


class Loop:
    """Runs what it is given when it is told to, as a loop may be behind the events that come."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []

    def add_callback(self, callback: Callable[..., None], *args: Any) -> None:
        self._waiting.append(partial(callback, *args))

    def turn(self) -> None:
        for callback in self._waiting:
            callback()
        self._waiting.clear()


def test_the_end_of_a_task_of_which_the_beginning_was_not_heard_is_no_task_without_a_name() -> None:
    loop = Loop()
    events = LastingEvents(app, on_worker=lambda *_: None, io_loop=loop, max_tasks_in_memory=10)
    common = {"hostname": "control@vm", "timestamp": 1.0, "local_received": 1.0, "clock": 1, "pid": 1, "utcoffset": 0}

    events.on_event({"type": "task-succeeded", "uuid": "a", "result": "", "runtime": 0.1, **common})
    events.on_event({"type": "task-received", "uuid": "b", "name": SWEEP, "args": "", "kwargs": "", **common})
    events.on_event({"type": "task-succeeded", "uuid": "b", "result": "", "runtime": 0.1, **common})
    loop.turn()

    assert [(task.uuid, task.name, task.state) for task in events.state.tasks.values()] == [("b", SWEEP, "SUCCESS")]


def test_a_memory_that_others_may_write_to_is_not_read(settings_env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(0o777)

    with pytest.raises(ConfigurationError, match="RYZANSTEIN_FLOWER_STATE_DIR"):
        state_file(Settings(flower_state_dir=folder))


def test_flower_wants_a_password(settings_env: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="RYZANSTEIN_FLOWER_PASSWORD"):
        access_options(Settings())
