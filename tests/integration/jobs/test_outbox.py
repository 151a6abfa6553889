from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from sqlalchemy import Engine, func, select

from pipeline.celery import CONTROL_QUEUE, KEY_PREFIX, PREPARE
from pipeline.embedded import EmbeddedRedis, new_password
from pipeline.jobs import outbox
from pipeline.processes import wait_until
from pipeline.settings import PREFIX, get_settings
from pipeline.tables import OutboxMessage
from pipeline.tables.session import make_engine, transaction


def num_waiting(engine: Engine) -> int:
    with engine.connect() as conn:
        return conn.scalar(select(func.count()).select_from(OutboxMessage)) or 0


def messages(url: str, queue: str) -> list[dict[str, object]]:
    """Headers of the messages in a queue, oldest first."""
    with redis.Redis.from_url(url) as client:
        return [json.loads(raw)["headers"] for raw in reversed(client.lrange(KEY_PREFIX + queue, 0, -1))]


@pytest.fixture
def own_redis(tmp_path: Path, settings_env: pytest.MonkeyPatch) -> Iterator[EmbeddedRedis]:
    """A Redis that a test may stop and kill."""
    server = EmbeddedRedis(tmp_path / "redis", new_password(), tmp_path / "redis.log")
    server.start()
    settings_env.setenv(PREFIX + "REDIS_URL", server.url)
    get_settings.cache_clear()
    yield server
    server.stop()


def test_a_committed_message_is_published_and_removed(database: Engine, redis_url: str) -> None:
    with transaction() as session:
        outbox.add(session, queue=CONTROL_QUEUE, task=PREPARE, args=["batch_1"])
        outbox.add_tickets(session, "family/model", 3)
    assert outbox.publish() == 4
    assert num_waiting(database) == 0
    [prepare] = messages(redis_url, CONTROL_QUEUE)
    assert (prepare["task"], prepare["argsrepr"]) == (PREPARE, "batch=batch_1")
    assert [ticket["argsrepr"] for ticket in messages(redis_url, "generate.family/model")] == ["model=family/model"] * 3


def test_a_message_of_a_transaction_that_was_rolled_back_is_never_published(database: Engine, redis_url: str) -> None:
    def fail_after_writing() -> None:
        with transaction() as session:
            outbox.add(session, queue=CONTROL_QUEUE, task=PREPARE, args=["batch_1"])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_after_writing()
    assert outbox.publish() == 0
    assert messages(redis_url, CONTROL_QUEUE) == []


def test_more_messages_than_a_page_are_all_published(database: Engine, redis_url: str) -> None:
    with transaction() as session:
        outbox.add_tickets(session, "m", 250)
    assert outbox.publish() == 250
    assert len(messages(redis_url, "generate.m")) == 250


def test_a_crash_between_publishing_and_deleting_publishes_twice(
    database: Engine, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with transaction() as session:
        outbox.add_tickets(session, "m", 1)
    send = outbox._publisher.send

    def send_and_die(page: list[OutboxMessage]) -> list[int]:
        send(page)
        raise KeyboardInterrupt

    monkeypatch.setattr(outbox._publisher, "send", send_and_die)
    with pytest.raises(KeyboardInterrupt):
        outbox.publish()
    monkeypatch.undo()
    assert num_waiting(database) == 1
    assert outbox.publish() == 1
    assert len(messages(redis_url, "generate.m")) == 2


def test_messages_being_published_by_another_are_left_to_it(database: Engine, redis_url: str) -> None:
    with transaction() as session:
        outbox.add_tickets(session, "m", 2)
    with transaction() as other:
        assert len(other.scalars(select(OutboxMessage).with_for_update()).all()) == 2
        assert outbox.publish() == 0
    assert outbox.publish() == 2


def test_messages_outlive_a_redis_that_is_down(database: Engine, own_redis: EmbeddedRedis) -> None:
    with transaction() as session:
        outbox.add_tickets(session, "m", 2)
    own_redis.stop()
    assert outbox.publish() == 0
    assert num_waiting(database) == 2
    own_redis.start()
    assert outbox.publish() == 2
    assert len(messages(own_redis.url, "generate.m")) == 2


def test_a_redis_that_hangs_does_not_hold_up_the_caller_for_ever(database: Engine, own_redis: EmbeddedRedis) -> None:
    with transaction() as session:
        outbox.add_tickets(session, "m", 200)
    assert own_redis.process is not None
    own_redis.process.send_signal(signal.SIGSTOP)
    try:
        assert outbox.publish() == 0
    finally:
        own_redis.process.send_signal(signal.SIGCONT)
    assert outbox.publish() == 200


def test_a_full_redis_is_no_error_of_the_caller(database: Engine, own_redis: EmbeddedRedis) -> None:
    with transaction() as session:
        outbox.add_tickets(session, "m", 1)
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory", "1")
        assert outbox.publish() == 0
        client.config_set("maxmemory", "0")
    assert outbox.publish() == 1


def test_another_thread_publishes_soon_after_the_commit(database: Engine, redis_url: str) -> None:
    for count in (1, 2):
        with transaction() as session:
            outbox.add_tickets(session, "m", 1)
        outbox.publish_soon()
        wait_until(
            lambda expected=count: len(messages(redis_url, "generate.m")) == expected,  # type: ignore[misc]
            what="the message",
            timeout=10,
            process=None,
        )
    wait_until(lambda: num_waiting(database) == 0, what="an empty outbox", timeout=10, process=None)


def test_publishing_soon_does_not_fail_without_redis(own_redis: EmbeddedRedis, database: Engine) -> None:
    own_redis.stop()
    with transaction() as session:
        outbox.add_tickets(session, "m", 1)
    outbox.publish_soon()
    own_redis.start()
    outbox.publish()
    wait_until(lambda: num_waiting(database) == 0, what="an empty outbox", timeout=10, process=None)


def test_an_outbox_that_cannot_be_asked_is_not_taken_for_empty(database: Engine) -> None:
    assert outbox.is_empty(database)
    with transaction() as session:
        outbox.add_tickets(session, "tiny", 1)
    assert not outbox.is_empty(database)
    assert not outbox.is_empty(make_engine("postgresql+psycopg://nobody@127.0.0.1:1/nowhere"))
