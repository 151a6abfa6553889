"""Several processes die at once, or one at the worst moment."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
from batch_jobs import check_complete, lines_of, submit, wait_for_end, wait_until_under_way
from faults import stack_faults
from harness import SHORT_LEASES, Chaos, running
from schedules import Event, Schedule
from stacks import RunningStack, wait_for

MakeStack = Callable[..., RunningStack]
FAULTS = {fault.name: fault for fault in stack_faults()}
NUM_REQUESTS = 200


@pytest.fixture(scope="module")
def chaos(stack_folder: Path, tiny_model: Path) -> Iterator[Chaos]:
    with running(stack_folder / "several", tiny_model, "--engine", "echo", "--groups", "2") as chaos:
        yield chaos


@pytest.mark.parametrize(
    "names",
    [
        ("gateway killed", "control killed"),
        ("redis killed", "postgres killed"),
        ("group-0 killed", "group-1 killed"),
        ("postgres connections cut", "redis connections cut", "control frozen"),
    ],
    ids="+".join,
)
def test_faults_at_the_same_moment(chaos: Chaos, names: tuple[str, ...]) -> None:
    faults = [FAULTS[name] for name in names]
    events = tuple(Event(fault=fault, after=20, seconds=fault.longest) for fault in faults)

    report = chaos.run(Schedule(seed=0, num_requests=NUM_REQUESTS, events=events))

    assert report.violations == ()
    assert all(hit.was_hit for hit in report.hits)


def test_control_killed_while_it_prepares_a_batch(chaos: Chaos) -> None:
    client, lines = chaos.stack.client(), lines_of(NUM_REQUESTS, max_tokens=1)
    control = chaos.stack.pid("control")
    assert control is not None
    os.kill(control, signal.SIGSTOP)
    batch = submit(client, lines)

    chaos.stack.wait_until_back(chaos.stack.kill("control"))

    check_complete(chaos.stack, wait_for_end(client, batch.id), lines)


def test_everything_killed_at_once_and_started_again(make_stack: MakeStack) -> None:
    stack = make_stack("--engine", "echo", **SHORT_LEASES)
    stack.up()
    lines = lines_of(NUM_REQUESTS)
    batch = submit(stack.client(), lines)
    wait_until_under_way(stack.client(), batch.id, 20)
    key = stack.report["api_key"]

    for pid in stack.status()["pids"].values():
        os.kill(pid, signal.SIGKILL)
    stack.up()

    assert stack.report["api_key"] == key
    check_complete(stack, wait_for_end(stack.client(), batch.id), lines)


def test_nothing_secret_reaches_a_log(make_stack: MakeStack) -> None:
    stack = make_stack("--engine", "echo", RYZANSTEIN_LOG_LEVEL="DEBUG")
    stack.up()
    client, canary = stack.client(), f"canary{time.time_ns()}"
    lines = [*lines_of(3), {**lines_of(1)[0], "custom_id": "secret"}]
    lines[-1]["body"]["messages"] = [{"role": "user", "content": canary}]
    batch = wait_for_end(client, submit(client, lines).id)
    check_complete(stack, batch, lines)
    stack.kill("postgres")
    bad = submit_when_back(stack, [f'{{"custom_id": "{canary}", "method": "{canary}"}}', f"{canary} not JSON"])
    assert wait_for_end(client, bad).status == "failed"
    stack.interrupt()

    logs = b"".join(path.read_bytes() for path in (stack.data_dir / "logs").iterdir())
    assert len(logs) > 0
    assert canary.encode() not in logs
    for name in ("api_key", "flower_password"):
        assert stack.report[name].encode() not in logs


def submit_when_back(stack: RunningStack, lines: list[str]) -> str:
    """Submit as soon as the gateway takes it."""

    def attempt() -> str | None:
        try:
            return submit(stack.client(), lines).id
        except (openai.APIConnectionError, openai.InternalServerError):
            return None

    return wait_for(attempt, "a batch accepted")
