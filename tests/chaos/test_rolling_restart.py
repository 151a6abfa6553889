"""Every process is restarted under load, one after the other, as a new version would be rolled out."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

from batch_jobs import check_complete, lines_of, submit, wait_for_batch, wait_for_end, wait_until_under_way
from faults import connect
from harness import check_at_rest
from openai.types import Batch
from stacks import CLI, RunningStack

EVERY_PROCESS = ["group-0", "group-1", "gateway", "control", "flower", "redis", "postgres"]
#: What is promised is 5 s; a machine that is busy with other tests starts processes more slowly.
LONGEST_PAUSE = 20.0

#: The longest time without a result while there was work.
PAUSE = """
    SELECT extract(epoch FROM max(pause))::float8 FROM (
        SELECT created_at - lag(created_at) OVER (ORDER BY created_at) AS pause FROM results
    ) AS pauses
"""
ATTEMPTS = 'SELECT "end", count(*), sum(num_wasted_tokens)::int FROM attempts GROUP BY 1'


def test_a_rolling_restart_fails_nothing_and_computes_nothing_again(make_stack: Callable[..., RunningStack]) -> None:
    stack = make_stack(
        *("--engine", "echo", "--groups", "2"),
        RYZANSTEIN_DRAIN_SECONDS="1",
        RYZANSTEIN_SLICE_REQUESTS="20",
        RYZANSTEIN_ECHO_TOKENS_PER_SECOND="150",
    )
    before = stack.up()["pids"]
    client, lines = stack.client().with_options(max_retries=10), lines_of(150)
    batches = [submit(client, lines)]
    wait_until_under_way(client, batches[0].id, 20)

    argv = [*CLI, "restart", "--all", "--json", "--data-dir", str(stack.data_dir)]
    restart = subprocess.Popen(argv, env=stack.environment, stdout=subprocess.PIPE, text=True)
    while restart.poll() is None:  # there is always work
        wait_for_batch(client, batches[-1].id, lambda batch: is_nearly_done(batch) or restart.poll() is not None)
        batches.append(submit(client, lines))
    out, _ = restart.communicate()

    assert restart.returncode == 0, out
    restarted = {one["name"]: one for one in map(json.loads, out.splitlines())}
    pids = stack.status()["pids"]
    assert list(restarted) == EVERY_PROCESS
    assert {name: one["old_pid"] for name, one in restarted.items()} == {name: before[name] for name in EVERY_PROCESS}
    assert {name: one["new_pid"] for name, one in restarted.items()} == {name: pids[name] for name in EVERY_PROCESS}
    assert pids["supervisor"] == before["supervisor"]
    print("seconds per process:", {name: round(one["seconds"], 1) for name, one in restarted.items()})
    for batch in batches:
        check_complete(stack, wait_for_end(client, batch.id), lines)
    check_nothing_was_wasted(stack)
    check_at_rest(stack)


def is_nearly_done(batch: Batch) -> bool:
    return batch.request_counts is not None and batch.request_counts.completed > 100


def check_nothing_was_wasted(stack: RunningStack) -> None:
    with connect(stack) as conn:
        attempts: list[tuple[Any, ...]] = conn.execute(ATTEMPTS).fetchall()
        (pause,) = conn.execute(PAUSE).fetchone() or (None,)
    print("attempts:", attempts, "longest pause:", pause, "s")
    # A group that was restarted gave back what it could not finish; no lease was left to run out.
    assert {end for end, _, _ in attempts} <= {"finished", "returned"}
    assert sum(num_wasted_tokens for _, _, num_wasted_tokens in attempts) == 0
    assert pause is not None
    assert pause < LONGEST_PAUSE
