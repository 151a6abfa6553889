"""A whole stack under Prometheus: every query of every board and rule finds its metrics, and incidents raise alerts."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import openai
import psutil
import psycopg
import pytest
from batch_jobs import lines_of, submit, wait_for_end, wait_until_under_way
from observability_queries import alert_queries, all_alerts, board_queries, vllm_queries
from running_prometheus import RunningPrometheus, need_prometheus, watching
from stacks import RunningStack, wait_for

T = TypeVar("T")

#: The promise: from the scrape that could see it to the alert, in seconds.
MAX_DELAY = 5.0
#: Metrics that a stack has only after something has gone wrong; the incidents below bring them about.
ONLY_AFTER = {"ryzanstein_waste_tokens_total", "ryzanstein_waste_engine_seconds_total"}


@dataclass(frozen=True)
class Watched:
    stack: RunningStack
    prometheus: RunningPrometheus
    client: openai.OpenAI

    def firing(self) -> set[str]:
        """The alerts that are raised now."""
        return {one["metric"]["alertname"] for one in self.prometheus.query('ALERTS{alertstate="firing"}')}

    @contextmanager
    def raises(self, *alerts: str, limit: float = 60.0) -> Iterator[None]:
        """Hold that what happens in this block raises these alerts, in time by Prometheus's own clock.

        Waits at the end of the block until they are raised.
        """
        assert not self.firing() & set(alerts)
        since = time.time()
        yield
        for alert in alerts:
            selector = f'ALERTS{{alertname="{alert}", alertstate="firing"}}'

            def samples(selector: str = selector) -> list[tuple[float, float]]:
                return self.prometheus.samples(selector, since)

            raised_at, _ = wait_for(samples, f"the alert {alert}", limit)[0]
            seen_at = self.prometheus.moments(all_alerts()[alert]["expr"], since)[0]
            print(f"{alert}: {seen_at - since:.2f} s to the first scrape that shows it, {raised_at - seen_at:.2f} s on")
            assert raised_at - seen_at <= MAX_DELAY, alert


@pytest.fixture(scope="module")
def watched(stack_folder: Path, tiny_model: Path) -> Iterator[Watched]:
    """A stack with slices so small that some always wait, and a Prometheus that sees all of it."""
    need_prometheus()
    env = {"RYZANSTEIN_SLICE_REQUESTS": "4", "RYZANSTEIN_MAX_NUM_SEQUENCES": "2", "RYZANSTEIN_GROUP_SLICES": "2"}
    stack = RunningStack(stack_folder / "watched", tiny_model, (), env)
    try:
        stack.up()
        with watching(stack) as prometheus:
            stack.run("budgets", "set", "default", "1000", check=True)
            prometheus.wait_until_it_sees("gateway", "control", "group", "flower")
            yield Watched(stack, prometheus, stack.client())
    finally:
        stack.end()


@pytest.fixture
def running_batch(watched: Watched) -> Iterator[str]:
    """A batch that goes on for longer than a test, with slices that wait; taken back when the test has ended."""
    batch = submit(watched.client, lines_of(800, max_tokens=32, ignore_eos=True))
    try:
        wait_until_under_way(watched.client, batch.id)
        yield batch.id
    finally:
        watched.client.batches.cancel(batch.id)
        wait_for_end(watched.client, batch.id)


def test_every_query_of_every_board_and_rule_finds_its_metrics(watched: Watched, running_batch: str) -> None:
    def missing() -> dict[str, set[str]]:
        names = watched.prometheus.names() | ONLY_AFTER
        return {one.where: one.names - names for one in (*board_queries(), *alert_queries()) if one.names - names}

    def empty() -> list[str]:
        return [
            query.where
            for query in (*board_queries(), *vllm_queries("tiny"))
            if not query.names & ONLY_AFTER and not watched.prometheus.query(query.without_variables)
        ]

    # Rates need two scrapes, and some of what control says is read seldom.
    assert settled(missing) == {}
    assert settled(empty) == []


def settled(look: Callable[[], T], limit: float = 30.0) -> T:
    """What `look()` finds when there is nothing left to find, or at the limit."""
    deadline = time.monotonic() + limit
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def test_a_healthy_stack_raises_no_alert(watched: Watched, running_batch: str) -> None:
    # How much room its disks have is this machine's affair.
    assert watched.firing() <= {"DiskFilling"}


def test_a_dead_rank_raises_its_alert(watched: Watched, running_batch: str) -> None:
    with watched.raises("RankDead"):
        os.kill(watched.stack.status()["pids"]["group-0.rank-0"], signal.SIGKILL)


def test_a_group_that_stands_still_while_slices_wait_raises_its_alerts(watched: Watched, running_batch: str) -> None:
    with watched.raises("GroupDown", "NoGroupForModel"), frozen(watched.stack.pid("group-0")):
        wait_for(lambda: {"GroupDown", "NoGroupForModel"} <= watched.firing(), "both")


def test_a_queue_that_nobody_can_claim_from_raises_its_alert(watched: Watched) -> None:
    wait_for(lambda: "NoGroupForModel" not in watched.firing(), "the group to be back")
    with watched.raises("QueueStuck"), psycopg.connect(watched.stack.report["database_url"]) as conn:
        conn.execute("LOCK TABLE attempts IN EXCLUSIVE MODE")
        batch = submit(watched.client, lines_of(20))
        wait_for(lambda: "QueueStuck" in watched.firing(), "the alert")
    assert wait_for_end(watched.client, batch.id).status == "completed"


def test_a_lost_database_and_a_lost_redis_raise_their_alerts(watched: Watched) -> None:
    lost = {"DatabaseLost", "RedisLost"}
    with watched.raises(*lost), frozen(watched.stack.status()["pids"]["supervisor"]):
        for server in ("postgres", "redis"):
            os.kill(watched.stack.pid(server) or 0, signal.SIGKILL)
        wait_for(lambda: lost <= watched.firing(), "both alerts")
    wait_for(lambda: not lost & watched.firing(), "the end of both")


def test_what_there_is_only_after_incidents_is_there_after_them(watched: Watched) -> None:
    assert watched.prometheus.names() >= ONLY_AFTER


@contextmanager
def frozen(pid: int | None) -> Iterator[None]:
    """Stop a process, so that nothing restarts what it is or what it watches, and let it go on."""
    assert pid is not None
    process = psutil.Process(pid)
    process.suspend()
    try:
        yield
    finally:
        process.resume()
