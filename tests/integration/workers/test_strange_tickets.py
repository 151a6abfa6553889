"""Tickets that come twice, too late or damaged, and messages that no ticket of ours is."""

from __future__ import annotations

import base64
import json
import pickle
import signal
import uuid
from pathlib import Path
from typing import Any

import redis
from running_groups import wait_for
from running_workers import Start, num_results, ring, wait_until_ready
from seeds import SeededTenant, seed_batch, sql
from sqlalchemy import Engine

from pipeline.celery import KEY_PREFIX, generate_queue
from pipeline.jobs.audit import audit
from pipeline.jobs.finalizing import finalize

QUEUE = KEY_PREFIX + generate_queue("tiny")


def message(task: str, args: object, *, content_type: str = "application/json", body: bytes | None = None) -> bytes:
    """A message as Celery writes it."""
    task_id = str(uuid.uuid4())
    raw = json.dumps([args, {}, {}]).encode() if body is None else body
    return json.dumps(
        {
            "body": base64.b64encode(raw).decode(),
            "content-encoding": "utf-8" if body is None else "binary",
            "content-type": content_type,
            "headers": {"lang": "py", "task": task, "id": task_id, "root_id": task_id, "argsrepr": "", "retries": 0},
            "properties": {
                "correlation_id": task_id,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": generate_queue("tiny")},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": task_id,
            },
        }
    ).encode()


class Payload:
    """What would happen if a message were unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


def test_tickets_that_come_twice_or_too_late_change_nothing(
    database: Engine, tenant: SeededTenant, folder: Path, start: Start, redis_url: str
) -> None:
    batch_id = seed_batch(database, tenant, [5, 5], params={"max_tokens": 2})
    ring(database, 2)
    with redis.Redis.from_url(redis_url) as client:
        for copy in client.lrange(QUEUE, 0, -1) * 10:
            client.lpush(QUEUE, copy)
        start(folder, sweep_seconds="3600")
        wait_for(lambda: num_results(database) == 10, timeout=60)
        wait_for(lambda: client.llen(QUEUE) == 0)
        ring(database, 3)
        wait_for(lambda: client.llen(QUEUE) == 0)
    wait_for(lambda: sql(database, "SELECT count(*) FROM attempts WHERE \"end\" = 'finished'") == [(2,)])
    assert sql(database, "SELECT count(*) FROM attempts") == [(2,)]
    finalize(batch_id, database)
    assert audit(database).violations == []


def test_messages_that_are_no_tickets_are_dropped_and_the_group_goes_on(
    database: Engine, tenant: SeededTenant, folder: Path, start: Start, redis_url: str, tmp_path: Path
) -> None:
    worker = start(folder, sweep_seconds="3600")
    wait_until_ready(database)
    canary = tmp_path / "canary"
    strange = [
        b"not json",
        b"{}",
        b"[1, 2]",
        b"\xff\xfe\x00",
        b'{"body": "e30=", "headers": {"task": "os.system", "id": "1"}}',
        message("os.system", ["touch " + str(canary)]),
        message("generate.slice", "no list"),
        message("generate.slice", []),
        message("generate.slice", ["tiny", "more", {"than": "wanted"}]),
        message("generate.slice", ["another-model"]),
        message("generate.slice", ["x" * 1_000_000]),
        message("generate.slice", [{"tenant_id": "tenant_of_somebody_else"}]),
        message("control.sweep", []),
        message("celery.backend_cleanup", []),
        message(
            "generate.slice", [], content_type="application/x-python-serialize", body=pickle.dumps(Payload(canary))
        ),
        message("generate.slice", [], content_type="application/json", body=b"\xff\xff"),
        message("generate.slice", ["tiny"])[:-30],
    ]
    with redis.Redis.from_url(redis_url) as client:
        for number, one in enumerate(strange, start=1):
            client.lpush(QUEUE, one)
            seed_batch(database, tenant, [1], params={"max_tokens": 2})
            ring(database)
            # A ticket that arrives in the moment in which the group connects again is lost, as the sweeper expects.
            wait_for(lambda: client.llen(QUEUE) == 0)
            for _ in range(20):
                if num_results(database) == number:
                    break
                try:
                    wait_for(lambda number=number: num_results(database) == number, timeout=2)
                except AssertionError:
                    ring(database)
            assert num_results(database) == number, one[:80]
            assert worker.poll() is None
    assert not canary.exists()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    log = (tmp_path / "worker.log").read_text()
    assert "x" * 1000 not in log
