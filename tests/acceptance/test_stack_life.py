"""`ryzanstein up`, `status` and `down`: a stack is brought up, broken and taken down through the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from stacks import RunningStack, wait_for

MakeStack = Callable[..., RunningStack]
SERVICES = ("postgres", "redis", "gateway", "control", "flower", "group-0")


def serves(stack: RunningStack) -> bool:
    """Whether its gateway answers a client, and knows the model."""
    return [model.id for model in stack.client().models.list()] == ["tiny"]


def test_up_detached_status_a_second_up_and_down(make_stack: MakeStack) -> None:
    stack = make_stack("--engine", "echo", "--detach")

    started = subprocess.run(stack.up_argv, env=stack.environment, capture_output=True, text=True, timeout=120)
    assert started.returncode == 0, started.stderr + stack.logs()
    stack.report = json.loads(started.stdout)
    assert set(stack.report["pids"]) == {"supervisor", *SERVICES}
    assert stack.report["base_url"].endswith("/v1")
    assert stack.report["state"] == "ready"
    assert serves(stack)
    with psycopg.connect(stack.report["database_url"]) as conn:
        assert conn.execute("SELECT name FROM tenants").fetchall() == [("default",)]

    assert json.loads(stack.run("status", "--json").stdout) == stack.report
    for secret in ("api_key", "flower_password"):
        assert stack.report[secret] not in _command_lines()
    again = subprocess.run(stack.up_argv, env=stack.environment, capture_output=True, text=True, timeout=60)
    assert again.returncode == 1
    assert f"A stack runs in {stack.data_dir} already" in again.stderr
    assert "Traceback" not in again.stderr
    assert stack.status()["pids"] == stack.report["pids"]

    assert stack.run("down").stdout == "Stopped.\n"
    assert stack.left() == []
    assert stack.run("down").stdout.startswith("Nothing was running")
    after = stack.run("status", "--json")
    assert after.returncode == 3
    assert json.loads(after.stdout)["pids"] == {}


def _command_lines() -> str:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # it has ended meanwhile
    return "\n".join(lines)


def test_whatever_is_killed_comes_back_and_an_interrupt_leaves_nothing(make_stack: MakeStack) -> None:
    stack = make_stack("--tp", "2")
    pids = stack.up()["pids"]
    ranks = {"group-0.rank-0", "group-0.rank-1"}
    assert set(pids) == {"supervisor", *SERVICES, *ranks}

    killed = {}
    for name in ("gateway", "flower", "control", "group-0"):
        killed.update(stack.kill(name))
    status = stack.wait_until_back(killed)
    assert {status["processes"][name]["restarts"] for name in killed} == {1}
    # A group takes its ranks with it, and one rank alone takes the others.
    status = stack.wait_until_back({name: pids[name] for name in ranks})
    group = status["pids"]["group-0"]
    stack.kill("group-0.rank-1")
    status = stack.wait_until_back({name: status["pids"][name] for name in ranks})
    assert status["pids"]["group-0"] == group

    for name in ("redis", "postgres"):
        stack.wait_until_back(stack.kill(name))
    stack.wait_until_back(stack.kill(*SERVICES))
    assert wait_for(lambda: serves(stack), "the gateway")
    assert stack.status()["pids"]["supervisor"] == pids["supervisor"]

    assert stack.interrupt() == 0
    assert stack.left() == []


def test_a_killed_supervisor_takes_everything_along_and_the_data_stays(make_stack: MakeStack) -> None:
    stack = make_stack("--engine", "echo")
    first = stack.up()
    uploaded = stack.client().files.create(file=("kept.jsonl", b'{"kept": true}\n'), purpose="batch")

    os.kill(first["pids"]["supervisor"], signal.SIGKILL)
    wait_for(lambda: not stack.left(), "the end of everything")
    assert stack.run("status").returncode == 3

    second = stack.up()
    assert second["api_key"] == first["api_key"]
    assert stack.client().files.content(uploaded.id).read() == b'{"kept": true}\n'

    for pid in second["pids"].values():
        os.kill(pid, signal.SIGKILL)
    third = stack.up()
    assert third["api_key"] == first["api_key"]
    assert not set(third["pids"].values()) & set(second["pids"].values())
    assert stack.client().files.content(uploaded.id).read() == b'{"kept": true}\n'


def test_two_stacks_run_side_by_side_and_know_nothing_of_each_other(make_stack: MakeStack) -> None:
    one, other = make_stack("--engine", "echo"), make_stack("--engine", "echo")
    one.up()
    other.up()

    assert one.report["base_url"] != other.report["base_url"]
    assert not set(one.report["pids"].values()) & set(other.report["pids"].values())
    one.client().files.create(file=("one.jsonl", b"{}\n"), purpose="batch")
    assert [file.filename for file in one.client().files.list()] == ["one.jsonl"]
    assert list(other.client().files.list()) == []
    crossed = urllib.request.Request(
        f"{other.report['base_url']}/files", headers={"Authorization": f"Bearer {one.report['api_key']}"}
    )
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(crossed, timeout=10)

    assert one.interrupt(signal.SIGTERM) == 0
    assert one.left() == []
    assert serves(other)


def test_a_model_that_can_not_be_loaded_is_said_in_one_line(make_stack: MakeStack, tmp_path: Path) -> None:
    stack = make_stack()
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in stack.model.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "model.safetensors").write_bytes((stack.model / "model.safetensors").read_bytes()[:-1000])
    stack.model = broken

    failed = subprocess.run(stack.up_argv, env=stack.environment, capture_output=True, text=True, timeout=120)

    assert failed.returncode == 1
    assert failed.stdout == ""
    assert len(failed.stderr.splitlines()) == 1, failed.stderr
    assert failed.stderr.startswith("Error: group-0 could not start: ")
    assert "model.safetensors" in failed.stderr
    assert stack.left() == []


@pytest.mark.parametrize("how", [(), ("--detach",)], ids=["foreground", "detached"])
def test_an_interrupt_while_it_starts_leaves_nothing(make_stack: MakeStack, how: tuple[str, ...]) -> None:
    stack = make_stack("--engine", "echo", *how)
    starting = subprocess.Popen(stack.up_argv, env=stack.environment, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: len(stack.left()) > 3 if stack.data_dir.exists() else None, "its first processes")

    starting.send_signal(signal.SIGINT)
    out, _ = starting.communicate(timeout=60)

    assert (starting.returncode, out) == (130, "")
    assert stack.left() == []
