from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import redis
from model_folders import random_llama
from running_groups import wait_for
from running_workers import Start, health_port, num_results, ring, wait_until_ready
from scraping import scrape
from seeds import SeededTenant, seed_batch, sql
from sqlalchemy import Engine

from pipeline.celery import KEY_PREFIX, generate_queue


def num_held(database: Engine) -> float:
    """Slices that the group has taken in, which it does after the claim is committed."""
    return scrape(f"http://127.0.0.1:{health_port(database)}/metrics").value("ryzanstein_group_slices_held")


def test_a_worker_answers_the_slices_that_its_tickets_are_for(
    database: Engine, tenant: SeededTenant, folder: Path, start: Start
) -> None:
    # Too slow to look into SQL by itself.
    worker = start(folder, "--name", "group-7", sweep_seconds="3600")
    wait_until_ready(database)
    ((group_id, info),) = sql(database, "SELECT id, info FROM groups")
    assert group_id.startswith("group-7@")
    assert (info["engine"], info["tp"], info["device"], info["dtype"]) == ("echo", 1, "cpu", "auto")
    seed_batch(database, tenant, [30, 30, 30, 30, 30], params={"max_tokens": 2})
    ring(database, 5)
    wait_for(lambda: num_results(database) == 150)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    assert sql(database, "SELECT state FROM groups") == [("stopped",)]


def test_tickets_wait_in_redis_while_a_worker_has_no_room(
    database: Engine, tenant: SeededTenant, folder: Path, start: Start, redis_url: str
) -> None:
    start(folder, sweep_seconds="3600", group_slices="2", echo_tokens_per_second="0.001")
    wait_until_ready(database)
    seed_batch(database, tenant, [1] * 6)
    ring(database, 6)
    wait_for(lambda: sql(database, "SELECT count(*) FROM slices WHERE status = 'claimed'") == [(2,)])
    with redis.Redis.from_url(redis_url) as client:
        assert client.llen(KEY_PREFIX + generate_queue("tiny")) == 4


def test_a_worker_takes_small_slices_until_its_engine_is_full_and_leaves_the_other_tickets(
    database: Engine, tenant: SeededTenant, folder: Path, start: Start, redis_url: str
) -> None:
    start(folder, sweep_seconds="3600", max_num_sequences="8", echo_tokens_per_second="0.001")
    wait_until_ready(database)
    for _ in range(20):
        seed_batch(database, tenant, [1])
    ring(database, 20)
    wait_for(lambda: sql(database, "SELECT count(*) FROM slices WHERE status = 'claimed'") == [(10,)])
    with redis.Redis.from_url(redis_url) as client:
        num_tickets = client.llen(KEY_PREFIX + generate_queue("tiny"))
    assert 7 <= num_tickets <= 10, "at most two more were on their way in when the last place was taken"


def test_sigterm_drains_and_a_second_returns_everything_at_once(
    database: Engine, tenant: SeededTenant, folder: Path, start: Start
) -> None:
    worker = start(folder, drain_seconds="3600", sweep_seconds="0.1", echo_tokens_per_second="0.001")
    wait_until_ready(database)
    seed_batch(database, tenant, [3])
    wait_for(lambda: num_held(database) == 1)
    worker.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(1)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    assert sql(database, 'SELECT "end" FROM attempts') == [("returned",)]
    assert sql(database, "SELECT status FROM slices") == [("pending",)]


@pytest.mark.parametrize("condition", ["true", "state = 'ready'"], ids=["as it loads", "ready"])
def test_signals_that_come_while_a_worker_ends_change_nothing(
    database: Engine, tmp_path: Path, start: Start, condition: str
) -> None:
    worker = start(random_llama(tmp_path / "model"), "--model-name", "tiny", "--engine", "native")
    wait_for(lambda: sql(database, f"SELECT 1 FROM groups WHERE {condition}"), timeout=60)
    while worker.poll() is None:
        worker.send_signal(signal.SIGTERM)
        time.sleep(0.001)
    assert worker.returncode == 0
    assert sql(database, "SELECT state FROM groups") == [("stopped",)]


def test_sigquit_returns_everything_at_once(database: Engine, tenant: SeededTenant, folder: Path, start: Start) -> None:
    worker = start(folder, drain_seconds="3600", sweep_seconds="3600", echo_tokens_per_second="0.001")
    wait_until_ready(database)
    seed_batch(database, tenant, [3])
    ring(database)
    wait_for(lambda: num_held(database) == 1)
    worker.send_signal(signal.SIGQUIT)
    assert worker.wait(30) == 0
    assert sql(database, 'SELECT "end" FROM attempts') == [("returned",)]


def test_a_killed_worker_loses_nothing_and_its_successor_goes_on(
    database: Engine, tenant: SeededTenant, folder: Path, start: Start
) -> None:
    first = start(folder, sweep_seconds="0.1", echo_tokens_per_second="100", lease_seconds="2")
    wait_until_ready(database)
    seed_batch(database, tenant, [40, 40], params={"max_tokens": 2})
    wait_for(lambda: num_results(database) >= 10)
    first.kill()
    first.wait()
    start(folder, sweep_seconds="0.1", lease_seconds="2")
    wait_for(lambda: sql(database, "SELECT 1 FROM slices HAVING bool_and(lease_expires_at < clock_timestamp())"))
    # What the sweeper does with leases that ran out.
    sql(database, "UPDATE slices SET status = 'pending', lease_epoch = lease_epoch + 1 WHERE status = 'claimed'")
    wait_for(lambda: num_results(database) == 80)
    assert sql(database, "SELECT count(*), sum(quantity) FROM metered_usage WHERE meter = 'output'") == [(80, 160)]
    assert sql(database, "SELECT num_succeeded FROM batches") == [(80,)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "missing", "neither a folder nor a name"),
        (lambda folder: folder.parent, "has no config.json"),
    ],
)
def test_a_model_that_is_not_there_is_one_readable_line(
    folder: Path, start: Start, tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    assert start(make(folder)).wait(60) == 1
    (line,) = [line for line in (tmp_path / "worker.log").read_text().splitlines() if line.startswith("error: ")]
    assert message in line
    assert "Traceback" not in (tmp_path / "worker.log").read_text()


def test_a_model_that_does_not_load_is_one_readable_line(database: Engine, start: Start, tmp_path: Path) -> None:
    folder = random_llama(tmp_path / "random")
    (folder / "model.safetensors").unlink()
    assert start(folder, "--engine", "native").wait(60) == 1
    log = (tmp_path / "worker.log").read_text()
    (line,) = [line for line in log.splitlines() if line.startswith("error: ")]
    assert "safetensors" in line
    assert "Traceback" not in log
    assert sql(database, "SELECT state, reason FROM groups") == [("stopped", line.removeprefix("error: "))]


def test_a_worker_that_is_stopped_while_it_loads_leaves_nothing(database: Engine, start: Start, tmp_path: Path) -> None:
    worker = start(random_llama(tmp_path / "random"), "--engine", "native", "--tp", "2")
    wait_for(lambda: sql(database, "SELECT 1 FROM groups WHERE state = 'starting'"), timeout=60)
    ranks = wait_for(lambda: psutil.Process(worker.pid).children(recursive=True), timeout=60)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    wait_for(lambda: not any(rank.is_running() for rank in ranks))
    assert "Traceback" not in (tmp_path / "worker.log").read_text()
