"""The peer of `pipeline.py`: plain Celery, one empty task per request, as good as it gets on the same Redis."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from celery import Celery

from pipeline.processes import spawn, stop

_PREFIX = "peer:"
_QUEUE = "peer"
#: Pools that are tried; the better one is the peer.
POOLS = ("prefork", "threads")

app = Celery("peer", broker=os.environ.get("PEER_REDIS_URL"))
app.conf.update(
    broker_transport_options={"global_keyprefix": _PREFIX},
    task_ignore_result=True,
    task_default_queue=_QUEUE,
    worker_prefetch_multiplier=64,  # the fastest for empty tasks
)


@app.task(name="peer.empty")  # type: ignore[untyped-decorator]
def empty(number: int) -> None:
    """Nothing: what is measured is Celery."""


@contextmanager
def running_worker(redis_url: str, pool: str) -> Iterator[None]:
    """A worker that has taken its first task."""
    app.conf.broker_url = redis_url
    argv = [sys.executable, "-m", "celery", "-A", "benchmarks.plain_celery", "worker"]
    argv += ["-P", pool, "-c", str(os.cpu_count() or 1), "-l", "ERROR", "--without-gossip", "--without-mingle"]
    worker = spawn(argv, env={**os.environ, "PEER_REDIS_URL": redis_url})
    try:
        run_tasks(redis_url, 1)
        yield
    finally:
        stop(worker, timeout=30)


def run_tasks(redis_url: str, num_tasks: int, *, timeout: float = 600.0) -> float:
    """Publish tasks and wait until the last was taken; returns seconds."""
    began = time.perf_counter()
    with app.producer_pool.acquire(block=True) as producer:
        for number in range(num_tasks):
            empty.apply_async((number,), producer=producer)
    with redis.Redis.from_url(redis_url) as client:
        # Acknowledged as they are taken: in the end both are gone.
        while client.exists(_PREFIX + _QUEUE) or client.exists(_PREFIX + "unacked"):
            if time.perf_counter() - began > timeout:
                raise TimeoutError(f"Plain Celery did not finish {num_tasks} tasks in {timeout:g} s.")
            time.sleep(0.02)
    return time.perf_counter() - began
