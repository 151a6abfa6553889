from __future__ import annotations

import threading

import pytest
from kombu.asynchronous.hub import Hub

from pipeline.worker_pool import TaskPool


@pytest.fixture
def hub() -> Hub:
    return Hub()


def test_the_event_loop_wakes_when_a_task_ends(hub: Hub) -> None:
    pool = TaskPool(1)
    pool.start()
    pool.register_with_event_loop(hub)
    release = threading.Event()
    result = pool.apply_async(release.wait, (10,))
    assert not hub.poller.poll(0.01), "nothing has ended"
    release.set()
    [(fd, _)] = hub.poller.poll(10)
    result.wait()
    callback, args = hub.readers[fd]
    callback(*args)
    assert not hub.poller.poll(0.01), "it was heard once"
    pool.stop()


def test_a_loop_that_does_not_listen_stops_no_task(hub: Hub) -> None:
    pool = TaskPool(4)
    pool.start()
    pool.register_with_event_loop(hub)
    done = []
    for _ in range(70_000):  # more than a pipe holds
        pool.wake()
    for result in [pool.apply_async(done.append, (number,)) for number in range(10)]:
        result.wait(10)
    pool.stop()  # which cancels what has not begun
    assert sorted(done) == list(range(10))


def test_asking_to_terminate_a_task_does_not_end_the_worker() -> None:
    pool = TaskPool(1)
    pool.terminate_job(1, signal=15)
