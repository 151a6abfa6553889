"""The control worker as a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from seeds import sql
from sqlalchemy import Engine
from submitting import Bench, request_line, request_lines
from webhook_endpoints import listen
from webhook_receivers import receiver

from pipeline.celery import CONTROL_QUEUE, KEY_PREFIX
from pipeline.embedded import EmbeddedRedis, new_password
from pipeline.jobs import outbox
from pipeline.processes import spawn, stop, wait_until
from pipeline.settings import PREFIX, get_settings
from pipeline.tables import BatchStatus


@pytest.fixture
def own_redis(tmp_path: Path, settings_env: pytest.MonkeyPatch) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(tmp_path / "redis", new_password(), tmp_path / "redis.log")
    server.start()
    settings_env.setenv(PREFIX + "REDIS_URL", server.url)
    settings_env.setenv(PREFIX + "SWEEP_SECONDS", "0.5")
    settings_env.setenv(PREFIX + "RELAY_SECONDS", "0.5")
    settings_env.setenv(PREFIX + "LOG_LEVEL", "DEBUG")
    settings_env.setenv(PREFIX + "WEBHOOK_HTTP", "true")
    settings_env.setenv(PREFIX + "WEBHOOK_PRIVATE_NETWORKS", "127.0.0.0/8,::1/128")
    settings_env.setenv(PREFIX + "SIGNING_KEY_FILE", str(tmp_path / "signing_key.pem"))
    get_settings.cache_clear()
    yield server
    server.stop()


@pytest.fixture
def stack(database: Engine, own_redis: EmbeddedRedis, tmp_path: Path) -> Bench:
    return Bench.make(database, tmp_path / "model")


@pytest.fixture
def log_path(tmp_path: Path) -> Path:
    return tmp_path / "control.log"


@pytest.fixture
def control(stack: Bench, own_redis: EmbeddedRedis, log_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = spawn([sys.executable, "-m", "pipeline.jobs"], log_path=log_path)
    wait_until(lambda: "ready." in log_path.read_text(), what="control", timeout=60, process=process)
    yield process
    stop(process, timeout=30)


def wait_for(stack: Bench, batch_id: str, status: BatchStatus, control: subprocess.Popen[bytes]) -> None:
    wait_until(lambda: stack.batch(batch_id).status is status, what=status.value, timeout=60, process=control)


def inspect(question: str) -> dict[str, Any]:
    """What `celery -A pipeline inspect` hears from the workers; asked again while they are connecting."""
    argv = [sys.executable, "-m", "celery", "-A", "pipeline", "inspect", "--json", "--timeout", "3", question]
    answer = subprocess.run(argv, capture_output=True, text=True)
    if answer.returncode != 0:
        answer = subprocess.run(argv, capture_output=True, text=True, check=True)
    said: dict[str, Any] = json.loads(answer.stdout)
    return said


def test_it_takes_a_batch_from_submission_to_its_end_and_leaves_in_order(
    stack: Bench, control: subprocess.Popen[bytes], log_path: Path
) -> None:
    batch_id = stack.submit(request_lines(3, prompt="the secret of the prompt"))
    outbox.publish_soon()
    wait_for(stack, batch_id, BatchStatus.IN_PROGRESS, control)
    stack.answer(stack.claim())
    outbox.publish_soon()
    wait_for(stack, batch_id, BatchStatus.COMPLETED, control)
    control.send_signal(signal.SIGTERM)
    assert control.wait(30) == 0
    assert "secret" not in log_path.read_text()


def test_it_tells_webhooks_that_a_batch_has_ended_and_tries_again(
    stack: Bench, control: subprocess.Popen[bytes]
) -> None:
    with receiver() as hooks:
        hooks.statuses[:] = [500, 200]
        listen(stack.tenant, hooks.url)
        batch_id = stack.submit([request_line("a", max_tokens=-1)])
        outbox.publish_soon()
        wait_for(stack, batch_id, BatchStatus.FAILED, control)
        wait_until(lambda: len(hooks.received) == 1, what="the first attempt", timeout=60, process=control)
        # The sweeper finds what is due, whoever published the first message.
        due = "UPDATE webhook_deliveries SET next_attempt_at = now() WHERE attempts <> '[]' RETURNING id"
        wait_until(lambda: bool(sql(stack.engine, due)), what="its note", timeout=60, process=control)
        wait_until(lambda: len(hooks.received) == 2, what="the second attempt", timeout=60, process=control)
    assert json.loads(hooks.received[1].body)["data"]["id"] == batch_id
    assert hooks.received[0].id == hooks.received[1].id


def test_it_is_a_node_that_flower_sees(control: subprocess.Popen[bytes]) -> None:
    [(name, queues)] = inspect("active_queues").items()
    assert name.startswith("control@")
    assert [queue["name"] for queue in queues] == ["control"]
    [(_, tasks)] = inspect("registered").items()
    assert set(tasks) >= {
        "control.prepare",
        "control.cancel",
        "control.finalize",
        "control.sweep",
        "control.relay",
        "webhook.deliver",
    }


def test_it_sweeps_while_redis_is_away_and_works_on_when_redis_is_back(
    stack: Bench, control: subprocess.Popen[bytes], own_redis: EmbeddedRedis
) -> None:
    batch_id = stack.submit(request_lines(1))
    wait_for(stack, batch_id, BatchStatus.IN_PROGRESS, control)
    claimed = stack.claim()
    assert own_redis.process is not None
    own_redis.process.kill()
    own_redis.process.wait()
    stack.execute("UPDATE slices SET lease_expires_at = now() - interval '1 second'")
    wait_until(
        lambda: stack.slices(batch_id)[0].lease_epoch == claimed.lease_epoch + 1,
        what="the sweep",
        timeout=60,
        process=control,
    )
    waiting = stack.submit(request_lines(1))
    own_redis.start()
    wait_for(stack, waiting, BatchStatus.IN_PROGRESS, control)


def test_it_relays_what_nobody_published_and_survives_messages_that_are_not_ours(
    stack: Bench, control: subprocess.Popen[bytes], own_redis: EmbeddedRedis
) -> None:
    with redis.Redis.from_url(own_redis.url) as client:
        for message in (b"{}", b"not json", b'{"body": "e30=", "headers": {"task": "os.system", "id": "1"}}'):
            client.lpush(KEY_PREFIX + CONTROL_QUEUE, message)
    batch_id = stack.submit(request_lines(1))
    wait_for(stack, batch_id, BatchStatus.IN_PROGRESS, control)


def test_it_ends_in_order_on_sigterm_without_redis(
    stack: Bench, control: subprocess.Popen[bytes], own_redis: EmbeddedRedis
) -> None:
    own_redis.stop()
    control.send_signal(signal.SIGTERM)
    assert control.wait(30) == 0


def test_signals_that_come_while_it_ends_change_nothing(control: subprocess.Popen[bytes]) -> None:
    while control.poll() is None:
        control.send_signal(signal.SIGTERM)
        time.sleep(0.001)
    assert control.returncode == 0
