from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import UserError
from pipeline.stack.data_dir import DataDir
from pipeline.stack.restarting import Restarted, RestartError, restart, restart_order
from pipeline.stack.state import ProcessPhase, ProcessState, StackPhase, StackState

NAMES = ["postgres", "redis", "gateway", "control", "group-0", "group-1", "flower"]


def state_of(data_dir: DataDir, pids: dict[str, int | None]) -> StackState:
    return StackState(
        phase=StackPhase.READY,
        data_dir=str(data_dir.root),
        model="tiny",
        base_url="",
        api_key=None,
        database_url="",
        redis_url="",
        flower_url="",
        flower_user="",
        flower_password="",
        processes={
            name: ProcessState(pid=pid, state=ProcessPhase.RESTARTING if pid is None else ProcessPhase.RUNNING)
            for name, pid in pids.items()
        },
    )


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[DataDir]:
    """Of a stack whose supervisor is this process."""
    folder = DataDir(tmp_path / "data")
    with folder.locked():
        yield folder


def test_groups_go_first_and_servers_last(data_dir: DataDir) -> None:
    state = state_of(data_dir, dict.fromkeys(NAMES, 1))
    assert restart_order(state) == ["group-0", "group-1", "gateway", "control", "flower", "redis", "postgres"]


@pytest.mark.parametrize(("name", "number"), [("postgres", signal.SIGINT), ("group-0", signal.SIGTERM)])
def test_a_process_ends_in_order_and_the_next_one_is_waited_for(
    data_dir: DataDir, name: str, number: signal.Signals
) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import signal; print(flush=True); signal.pause()"], stdout=-1)
    assert process.stdout is not None
    process.stdout.readline()
    state_of(data_dir, {name: process.pid}).write(data_dir)
    done: list[Restarted] = []
    restarting = threading.Thread(
        target=restart, args=(data_dir, [name]), kwargs={"patience": 60.0, "tell": done.append}
    )
    restarting.start()

    assert process.wait(30) == -number
    state_of(data_dir, {name: None}).write(data_dir)
    assert done == []
    state_of(data_dir, {name: os.getppid()}).write(data_dir)
    restarting.join(30)
    assert [(one.name, one.old_pid, one.new_pid) for one in done] == [(name, process.pid, os.getppid())]
    process.communicate()


def test_a_process_that_is_not_the_supervisors_own_gets_no_signal(data_dir: DataDir) -> None:
    """The state may name a pid that is another program's by now."""
    state_of(data_dir, {"gateway": os.getppid()}).write(data_dir)
    with pytest.raises(RestartError, match="gateway is not ready again after"):
        restart(data_dir, ["gateway"], patience=0.3, tell=lambda _: None)


def test_a_name_that_is_none_restarts_nothing(data_dir: DataDir) -> None:
    state_of(data_dir, {"gateway": os.getppid(), "control": None}).write(data_dir)
    with pytest.raises(RestartError, match="No process is called 'worker'; there are: gateway, control"):
        restart(data_dir, ["gateway", "worker"], patience=1, tell=lambda _: None)


def test_where_no_stack_runs_there_is_nothing_to_restart(tmp_path: Path) -> None:
    with pytest.raises(RestartError, match="No stack runs"):
        restart(DataDir(tmp_path), [], patience=1, tell=lambda _: None)


@pytest.mark.parametrize("arguments", [[], ["gateway", "--all"]])
def test_all_is_said_and_not_meant_by_accident(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["restart", *arguments])
    assert isinstance(result.exception, UserError)
