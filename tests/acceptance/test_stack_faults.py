"""Things die in the middle of a batch; the batch completes, each line once, each token billed once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from batch_jobs import check_complete, lines_of, submit, wait_for_end, wait_until_under_way
from stacks import RunningStack, wait_for

MakeStack = Callable[..., RunningStack]

#: Slices so small that several are under way, and an engine so slow that a batch of these can be disturbed.
SLOW_ECHO = {
    "RYZANSTEIN_SLICE_REQUESTS": "25",
    "RYZANSTEIN_ECHO_TOKENS_PER_SECOND": "400",
}
NUM_REQUESTS = 300


@pytest.fixture
def slow_stack(make_stack: MakeStack) -> RunningStack:
    stack = make_stack("--engine", "echo", **SLOW_ECHO)
    stack.up()
    return stack


def test_a_group_killed_in_the_middle_of_a_batch(slow_stack: RunningStack) -> None:
    client, lines = slow_stack.client(), lines_of(NUM_REQUESTS)
    batch = submit(client, lines)
    wait_until_under_way(client, batch.id, 20)

    slow_stack.wait_until_back(slow_stack.kill("group-0"))

    check_complete(slow_stack, wait_for_end(client, batch.id), lines)


def test_a_group_that_is_stopped_longer_than_its_lease_writes_nothing_when_it_wakes(make_stack: MakeStack) -> None:
    stack = make_stack("--engine", "echo", "--groups", "2", **SLOW_ECHO)
    stack.up()
    client, lines = stack.client(), lines_of(NUM_REQUESTS)
    batch = submit(client, lines)
    wait_until_under_way(client, batch.id, 20)
    frozen = stack.status()["pids"]["group-0"]

    os.kill(frozen, signal.SIGSTOP)
    try:
        # The other group takes over what the frozen one holds, when its leases have run out.
        with psycopg.connect(stack.report["database_url"], autocommit=True) as conn:
            wait_for(
                lambda: conn.execute("SELECT 1 FROM attempts WHERE \"end\" = 'lost'").fetchone(), "a lost lease", 30
            )
    finally:
        os.kill(frozen, signal.SIGCONT)

    check_complete(stack, wait_for_end(client, batch.id), lines)


def test_redis_killed_and_back_empty_in_the_middle_of_a_batch(slow_stack: RunningStack) -> None:
    client, lines = slow_stack.client(), lines_of(NUM_REQUESTS)
    batch = submit(client, lines)
    wait_until_under_way(client, batch.id, 20)

    slow_stack.wait_until_back(slow_stack.kill("redis"))

    check_complete(slow_stack, wait_for_end(client, batch.id), lines)
    after = submit(client, lines)
    check_complete(slow_stack, wait_for_end(client, after.id), lines)


def test_postgresql_killed_in_the_middle_of_a_batch(slow_stack: RunningStack) -> None:
    client, lines = slow_stack.client(), lines_of(NUM_REQUESTS)
    batch = submit(client, lines)
    wait_until_under_way(client, batch.id, 20)

    slow_stack.wait_until_back(slow_stack.kill("postgres"))

    check_complete(slow_stack, wait_for_end(client, batch.id), lines)


def test_gateway_and_control_killed_in_the_middle_of_a_batch(slow_stack: RunningStack) -> None:
    client, lines = slow_stack.client(), lines_of(NUM_REQUESTS)
    batch = submit(client, lines)
    wait_until_under_way(client, batch.id, 20)

    slow_stack.wait_until_back(slow_stack.kill("gateway", "control"))

    check_complete(slow_stack, wait_for_end(client, batch.id), lines)


def test_control_killed_while_it_prepares_a_batch(slow_stack: RunningStack) -> None:
    client, lines = slow_stack.client(), lines_of(NUM_REQUESTS, max_tokens=1)
    os.kill(slow_stack.status()["pids"]["control"], signal.SIGSTOP)
    batch = submit(client, lines)

    slow_stack.wait_until_back(slow_stack.kill("control"))

    check_complete(slow_stack, wait_for_end(client, batch.id), lines)


def test_everything_killed_at_once_and_started_again(make_stack: MakeStack) -> None:
    stack = make_stack("--engine", "echo", **SLOW_ECHO)
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


def test_a_rank_killed_in_the_middle_of_a_batch(make_stack: MakeStack) -> None:
    stack = make_stack("--tp", "2", RYZANSTEIN_MAX_NUM_SEQUENCES="4")
    stack.up()
    client = stack.client()
    lines = lines_of(120, max_tokens=40, ignore_eos=True)
    batch = submit(client, lines)
    wait_until_under_way(client, batch.id, 5)
    group = stack.status()["pids"]["group-0"]

    killed = stack.kill("group-0.rank-1")
    status = stack.wait_until_back(killed)

    assert status["pids"]["group-0"] == group  # the group recovered by itself
    check_complete(stack, wait_for_end(client, batch.id, 180), lines)


def test_a_group_asked_to_end_in_the_middle_of_a_batch_returns_what_it_does_not_finish(make_stack: MakeStack) -> None:
    stack = make_stack("--engine", "echo", **SLOW_ECHO, RYZANSTEIN_DRAIN_SECONDS="1")
    stack.up()
    client, lines = stack.client(), lines_of(NUM_REQUESTS)
    batch = submit(client, lines)
    wait_until_under_way(client, batch.id, 20)
    pid = stack.status()["pids"]["group-0"]

    os.kill(pid, signal.SIGTERM)
    stack.wait_until_back({"group-0": pid})

    check_complete(stack, wait_for_end(client, batch.id), lines)
    with psycopg.connect(stack.report["database_url"]) as conn:
        ends = {end for (end,) in conn.execute('SELECT DISTINCT "end" FROM attempts')}
    assert ends == {"finished", "returned"}


def test_nothing_secret_reaches_a_log(make_stack: MakeStack, tmp_path: Path) -> None:
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
    import openai

    def attempt() -> str | None:
        try:
            return submit(stack.client(), lines).id
        except (openai.APIConnectionError, openai.InternalServerError):
            return None

    return wait_for(attempt, "a batch accepted")
