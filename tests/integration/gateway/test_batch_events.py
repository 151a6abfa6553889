"""`GET /v1/batches/{id}/events`, read as a client reads it."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from running_gateways import Tenant, error_of, new_tenant, postgres_processes, serve, wait_for
from seeds import SeededTenant, seed_batch, seed_model, sql
from sqlalchemy import Engine

from pipeline.embedded import EmbeddedPostgres
from pipeline.gateway import create_app, progress_feed
from pipeline.gateway.middleware import ANSWER_SECONDS
from pipeline.gateway.progress_feed import MAX_STREAMS_PER_KEY, ProgressFeed
from pipeline.tables.session import get_engine

#: Short times, so that tests need not wait.
LOOK_SECONDS = 0.05


@pytest.fixture
def feed() -> ProgressFeed:
    return ProgressFeed(LOOK_SECONDS, keep_alive_seconds=0.3)


@pytest.fixture
def answer_seconds() -> float:
    """Many streams that begin at once on busy cores take their time."""
    return ANSWER_SECONDS


@pytest.fixture
def acme(
    database: Engine, redis_url: str, log_path: Path, feed: ProgressFeed, answer_seconds: float
) -> Iterator[Tenant]:
    app = create_app(answer_seconds=answer_seconds)
    app.state.progress = feed
    with serve(app) as address:
        tenant = new_tenant(address, "acme")
        seed_model(database)
        yield tenant
        tenant.client.close()
        tenant.http.close()


def begin(database: Engine, acme: Tenant, num_requests: int = 4) -> str:
    [(key_id,)] = sql(database, "SELECT id FROM api_keys WHERE tenant_id = :id LIMIT 1", id=acme.id)
    return seed_batch(database, SeededTenant(acme.id, key_id), [num_requests])


def change(batch_id: str, **values: object) -> None:
    columns = ", ".join(f"{name} = :{name}" for name in values)
    sql(get_engine(), f"UPDATE batches SET {columns} WHERE id = :id", id=batch_id, **values)


class Stream:
    """Events of an open stream."""

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self._lines = response.iter_lines()
        self.num_comments = 0

    def next(self) -> dict[str, Any] | None:
        """The next event, with its `event`, `id` and what is in its data; None at the end."""
        fields: dict[str, str] = {}
        for line in self._lines:
            if line.startswith(":"):
                self.num_comments += 1
            elif line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif "data" in fields:
                return {"event": fields["event"], "id": fields["id"], **json.loads(fields["data"])}
        return None


@contextmanager
def watching(acme: Tenant, batch_id: str, last_event_id: str = "", **params: int) -> Iterator[Stream]:
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    with acme.http.stream("GET", f"/v1/batches/{batch_id}/events", params=params, headers=headers) as response:
        assert response.status_code == 200, response.read()
        yield Stream(response)


def test_each_change_is_an_event_and_the_end_is_the_last(acme: Tenant, database: Engine) -> None:
    batch_id = begin(database, acme)
    with watching(acme, batch_id) as stream:
        assert stream.response.headers["content-type"].startswith("text/event-stream")
        first = stream.next()
        assert first is not None
        assert (first["event"], first["status"], first["object"]) == ("status", "in_progress", "batch.progress")
        assert first["request_counts"] == {"total": 4, "completed": 0, "failed": 0}

        change(batch_id, num_succeeded=1, num_unsuccessful=1, num_prompt_tokens=1_000_000, num_completion_tokens=5)
        second = stream.next()
        assert second is not None
        assert second["event"] == "progress"
        assert second["request_counts"] == {"total": 4, "completed": 1, "failed": 1}
        assert second["usage"]["total_tokens"] == 1_000_005
        # 1,000,000 tokens of input at 0.137 and 5 of output at 0.411 for 1,000,000, less a third.
        assert second["cost"] == {"amount": "0.091380370685", "currency": "USD"}
        assert second["seconds_left"] is not None

        sql(database, "UPDATE batches SET pause_reason = 'client', pause_note = 'later', paused_at = now()")
        third = stream.next()
        assert third is not None
        assert (third["event"], third["pause_reason"], third["pause_note"]) == ("status", "client", "later")
        assert third["seconds_left"] is None

        change(batch_id, status="cancelled")
        last = stream.next()
        assert last is not None
        assert (last["event"], last["status"], last["pause_reason"]) == ("status", "cancelled", None)
        assert stream.next() is None
    assert len({first["id"], second["id"], third["id"], last["id"]}) == 4


def test_a_client_that_comes_back_is_told_what_it_does_not_know(acme: Tenant, database: Engine) -> None:
    batch_id = begin(database, acme)
    with watching(acme, batch_id, timeout=0) as stream:
        known = stream.next()
        assert known is not None
        assert stream.next() is None
    with watching(acme, batch_id, known["id"], timeout=0) as stream:
        assert stream.next() is None, "it knows that"
    change(batch_id, num_succeeded=4, status="completed")
    with watching(acme, batch_id, known["id"]) as stream:
        last = stream.next()
        assert last is not None
        assert last["status"] == "completed"
    response = acme.http.get(f"/v1/batches/{batch_id}/events", headers={"Last-Event-ID": last["id"]})
    assert response.status_code == 204, "by which a browser knows to stay away"


@pytest.mark.parametrize("answer_seconds", [4.0])
def test_a_quiet_stream_outlives_the_deadline_of_answers_and_says_that_it_is_there(
    acme: Tenant, database: Engine
) -> None:
    batch_id = begin(database, acme)
    with watching(acme, batch_id, timeout=5) as stream:
        assert stream.next() is not None
        assert stream.next() is None
        assert stream.num_comments >= 3


def test_many_streams_are_one_look(acme: Tenant, database: Engine, feed: ProgressFeed) -> None:
    batch_ids = [begin(database, acme) for _ in range(5)]
    streams = [watching(acme, batch_id) for batch_id in batch_ids for _ in range(3)]
    opened = [stream.__enter__() for stream in streams]
    for stream in opened:
        assert stream.next() is not None
    num_looks, queries = feed.num_looks, count_queries(database)
    wait_for(lambda: feed.num_looks >= num_looks + 10)
    # Of one look: the batches, their prices, the keys.
    assert len(queries) <= 3 * (feed.num_looks - num_looks + 2)
    for one in streams:
        one.__exit__(None, None, None)
    wait_for(lambda: feed.num_streams == 0)
    num_looks = feed.num_looks
    wait_for(lambda: feed._looking is not None and feed._looking.done())
    assert feed.num_looks <= num_looks + 1, "nobody looks for nobody"


def count_queries(database: Engine) -> list[str]:
    from sqlalchemy import event

    seen: list[str] = []
    event.listen(database, "before_cursor_execute", lambda *arguments: seen.append(arguments[2]))
    return seen


def test_a_key_has_a_bounded_number_of_streams(acme: Tenant, database: Engine, feed: ProgressFeed) -> None:
    batch_id = begin(database, acme)
    streams = [watching(acme, batch_id) for _ in range(MAX_STREAMS_PER_KEY)]
    opened = [one.__enter__() for one in streams]
    for stream in opened:
        assert stream.next() is not None
    refused = acme.http.get(f"/v1/batches/{batch_id}/events")
    assert (refused.status_code, error_of(refused)["code"]) == (429, "too_many_streams")
    for one in streams:
        one.__exit__(None, None, None)
    wait_for(lambda: feed.num_streams == 0)
    with watching(acme, batch_id, timeout=0) as stream:
        assert stream.next() is not None


def test_streams_that_are_asked_for_at_once_are_no_more_either(acme: Tenant, database: Engine) -> None:
    batch_id, start, num_asked = begin(database, acme), threading.Barrier(2 * MAX_STREAMS_PER_KEY), []

    def ask(path: str) -> None:
        start.wait(60)
        with acme.http.stream("GET", path) as response:
            num_asked.append(response.status_code)
            wait_for(lambda: len(num_asked) == 2 * MAX_STREAMS_PER_KEY)

    threads = [
        threading.Thread(target=ask, args=(f"/v1/batches/{batch_id}/events",)) for _ in range(2 * MAX_STREAMS_PER_KEY)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert num_asked.count(200) == MAX_STREAMS_PER_KEY
    assert num_asked.count(429) == MAX_STREAMS_PER_KEY


def test_a_key_that_is_revoked_hears_nothing_more(acme: Tenant, database: Engine, feed: ProgressFeed) -> None:
    batch_id = begin(database, acme)
    with watching(acme, batch_id) as stream:
        assert stream.next() is not None
        sql(database, "UPDATE api_keys SET revoked_at = now()")
        wait_for(lambda: feed.num_streams == 0)
        assert stream.next() is None


def test_streams_outlive_the_database(own_postgres: EmbeddedPostgres, redis_url: str, log_path: Path) -> None:
    feed = ProgressFeed(LOOK_SECONDS, keep_alive_seconds=0.1)
    app = create_app()
    app.state.progress = feed
    database = get_engine()
    seed_model(database)
    with serve(app) as address:
        acme = new_tenant(address, "acme")
        batch_id = begin(database, acme)
        with watching(acme, batch_id) as stream:
            assert stream.next() is not None
            os.kill(postgres_processes(own_postgres)[0], signal.SIGINT)  # fast shutdown
            wait_for(lambda: "streams of events have no news" in log_path.read_text())
            own_postgres.process = None
            own_postgres.start()
            change(batch_id, num_succeeded=2)
            news = stream.next()
            assert news is not None
            assert news["request_counts"]["completed"] == 2
        acme.client.close()
        acme.http.close()


def test_streams_outlive_a_fault_that_nobody_has_thought_of(
    acme: Tenant, database: Engine, log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = begin(database, acme)
    with watching(acme, batch_id, timeout=20) as stream:
        assert stream.next() is not None
        monkeypatch.setattr(progress_feed, "read_progress", lambda *_: 1 / 0)
        wait_for(lambda: "streams of events have no news" in log_path.read_text())
        monkeypatch.undo()
        change(batch_id, num_succeeded=2)
        news = stream.next()
        assert news is not None
        assert news["request_counts"]["completed"] == 2
    assert log_path.read_text().count("streams of events have no news") == 1


def test_a_gateway_that_is_asked_to_end_does_not_wait_for_streams(
    acme: Tenant, database: Engine, feed: ProgressFeed
) -> None:
    batch_id = begin(database, acme)
    with watching(acme, batch_id) as stream:
        assert stream.next() is not None
        feed.close()
        wait_for(lambda: feed.num_streams == 0)
        assert stream.next() is None


def test_what_is_not_the_callers_has_no_events(acme: Tenant, join: Callable[..., Tenant], database: Engine) -> None:
    batch_id = begin(database, acme)
    for caller, wanted in ((join("globex"), batch_id), (acme, "batch_none")):
        assert error_of(caller.http.get(f"/v1/batches/{wanted}/events"))["code"] == "batch_not_found"


def test_clients_that_go_away_leave_nothing_behind(acme: Tenant, database: Engine, feed: ProgressFeed) -> None:
    batch_id = begin(database, acme)

    def come_and_go() -> None:
        with watching(acme, batch_id) as stream:
            assert stream.next() is not None

    threads = [threading.Thread(target=come_and_go) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_for(lambda: feed.num_streams == 0)
    assert not feed._watched
    assert not feed._found
    assert not feed._speeds
