from __future__ import annotations

import json
import threading
from datetime import timedelta
from typing import Any

import openai
import pytest
from seeds import seed_tenant, sql
from submitting import Bench, request_line
from webhook_endpoints import deliveries, end, listen, make_due
from webhook_receivers import Receiver

from pipeline.celery import DELIVER
from pipeline.jobs import sweeping, tasks
from pipeline.jobs.cancelling import cancel_batch, end_cancelled
from pipeline.jobs.finalizing import finalize
from pipeline.jobs.preparing import prepare
from pipeline.signing import signing_key
from pipeline.tables import BatchStatus
from pipeline.tables.session import transaction
from pipeline.tenancy.erasing import erase_tenant
from pipeline.webhooks import delivering, sending
from pipeline.webhooks.delivering import deliver_due, send_due
from pipeline.webhooks.events import EventType, add_event
from pipeline.webhooks.signatures import secret_of


def endpoint(bench: Bench) -> dict[str, Any]:
    [(row,)] = sql(bench.engine, "SELECT to_jsonb(e) FROM webhook_endpoints e")
    return dict(row)


def middle() -> float:
    """No jitter."""
    return 0.5


def test_the_client_of_openai_verifies_what_a_receiver_is_sent_when_a_batch_ends(bench: Bench, hooks: Receiver) -> None:
    endpoint_id = listen(bench.tenant, hooks.url)
    batch_id = end(bench)
    assert hooks.received == []
    assert bench.messages(DELIVER) == [[]]

    assert tasks.deliver() == {"delivered": 1, "failed": 0}

    [message] = hooks.received
    client = openai.OpenAI(api_key="none", webhook_secret=secret_of(signing_key(), endpoint_id, 1))
    event = client.webhooks.unwrap(message.body, message.headers)
    assert isinstance(event, openai.types.webhooks.BatchCompletedWebhookEvent)
    assert (event.data.id, event.id) == (batch_id, message.id)
    assert message.path == "/hooks?a=b"
    assert message.headers["host"].startswith("localhost:")
    assert message.headers["content-type"] == "application/json"
    assert tasks.deliver() == {"delivered": 0, "failed": 0}


def test_each_way_to_end_has_its_event(bench: Bench, hooks: Receiver) -> None:
    listen(bench.tenant, hooks.url)
    completed = end(bench)
    failed = bench.submit([request_line("a", max_tokens=-1)])
    prepare(failed, bench.engine)
    cancelled, expired = bench.run(1), bench.run(1)
    with transaction() as session:
        cancel_batch(session, cancelled, bench.tenant.id)
    end_cancelled(cancelled, bench.engine)
    bench.execute("UPDATE batches SET expires_at = now() - interval '1 second' WHERE id = :id", id=expired)
    sweeping.end_waiting(bench.engine)

    assert deliver_due()["delivered"] == 4

    told = {(event["type"], event["data"]["id"]) for event in (json.loads(one.body) for one in hooks.received)}
    assert told == {
        ("batch.completed", completed),
        ("batch.failed", failed),
        ("batch.cancelled", cancelled),
        ("batch.expired", expired),
    }


def test_an_event_goes_to_those_who_want_it_and_to_nobody_else(bench: Bench, hooks: Receiver) -> None:
    other = seed_tenant(bench.engine, "globex")
    listen(other, hooks.url)
    listen(bench.tenant, hooks.url, EventType.BATCH_FAILED)
    listen(bench.tenant, hooks.url, project_id="proj_of_others")
    end(bench)
    assert sql(bench.engine, "SELECT * FROM webhook_events") == []
    assert bench.messages(DELIVER) == []

    [(project,)] = sql(bench.engine, "SELECT project_id FROM batches")
    wanted = {listen(bench.tenant, hooks.url), listen(bench.tenant, hooks.url, project_id=project)}
    bench.execute("UPDATE batches SET project_id = NULL")  # as a gateway of a version before leaves it
    bench.execute("UPDATE batches SET status = 'in_progress'")
    [(batch_id,)] = sql(bench.engine, "SELECT id FROM batches")
    finalize(batch_id, bench.engine)

    assert {row["endpoint_id"] for row in deliveries(bench)} == wanted
    assert len(sql(bench.engine, "SELECT * FROM webhook_events")) == 1


def test_an_event_is_there_if_and_only_if_its_batch_has_ended(
    bench: Bench, hooks: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    listen(bench.tenant, hooks.url)
    batch_id = bench.run(1)
    bench.answer(bench.claim())
    monkeypatch.setattr("pipeline.webhooks.events.outbox.add", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        finalize(batch_id, bench.engine)
    assert bench.batch(batch_id).completed_at is None
    assert deliveries(bench) == []
    monkeypatch.undo()
    finalize(batch_id, bench.engine)
    finalize(batch_id, bench.engine)
    assert len(deliveries(bench)) == 1


def test_what_fails_is_tried_again_ever_more_rarely_with_the_same_id(bench: Bench, hooks: Receiver) -> None:
    listen(bench.tenant, hooks.url)
    end(bench)
    hooks.statuses[:] = [500, 302, 429, 204]
    hooks.headers["location"] = hooks.url + "&redirected"
    pauses = []
    for _ in range(3):
        assert deliver_due(chance=middle) == {"delivered": 0, "failed": 1}
        assert deliver_due(chance=middle) == {"delivered": 0, "failed": 0}
        pauses.append(deliveries(bench)[0]["pause"])
        make_due(bench)
    assert endpoint(bench)["failing_since"] is not None
    assert deliver_due() == {"delivered": 1, "failed": 0}

    assert pauses == [pytest.approx(seconds, abs=3) for seconds in (6, 30, 120)]
    assert [len({one.id for one in hooks.received}), len({one.body for one in hooks.received})] == [1, 1]
    assert [one.path for one in hooks.received] == ["/hooks?a=b"] * 4  # no redirect was followed
    [done] = deliveries(bench)
    assert (done["status"], done["num_attempts"]) == ("delivered", 4)
    assert [one["status"] for one in done["attempts"]] == [500, 302, 429, 204]
    assert done["attempts"][0]["error"] == "The receiver answered with status 500."
    assert "thanks" not in json.dumps(done)
    assert endpoint(bench)["failing_since"] is None


def test_pauses_are_scattered_and_end_at_six_hours() -> None:
    assert delivering._pause_after(100, lambda: 0.0) == timedelta(hours=4.8)
    assert delivering._pause_after(100, lambda: 1.0) == timedelta(hours=7.2)


def test_after_72_hours_without_success_it_is_given_up_and_the_endpoint_disabled(bench: Bench, hooks: Receiver) -> None:
    hooks.statuses[:] = [503]
    endpoint_id = listen(bench.tenant, hooks.url)
    end(bench)
    deliver_due()
    bench.execute("UPDATE webhook_deliveries SET next_attempt_at = now(), give_up_at = now(), num_tries = 18")
    bench.execute("UPDATE webhook_endpoints SET failing_since = now() - interval '72 hours'")

    deliver_due()

    assert deliveries(bench)[0]["status"] == "failed"
    disabled = endpoint(bench)
    assert disabled["disabled_at"] is not None
    assert "No attempt has succeeded for 72 hours" in disabled["disabled_reason"]
    noted = sql(bench.engine, "SELECT actor, act FROM audit_log WHERE object = :id ORDER BY seq", id=endpoint_id)
    assert noted[-1] == ("webhooks", "webhook.disable")
    end(bench)
    assert len(deliveries(bench)) == 1, "nothing is sent to it any more"


def test_one_event_that_is_given_up_does_not_disable_an_endpoint_that_takes_others(
    bench: Bench, hooks: Receiver
) -> None:
    hooks.statuses[:] = [503]
    listen(bench.tenant, hooks.url)
    end(bench)
    bench.execute("UPDATE webhook_deliveries SET give_up_at = now()")
    deliver_due()
    assert deliveries(bench)[0]["status"] == "failed"
    assert endpoint(bench)["disabled_at"] is None


def test_a_receiver_that_is_gone_for_good_is_told_nothing_more(bench: Bench, hooks: Receiver) -> None:
    hooks.statuses[:] = [410]
    listen(bench.tenant, hooks.url)
    end(bench)
    deliver_due()
    assert "410" in endpoint(bench)["disabled_reason"]
    assert deliveries(bench)[0]["status"] == "failed"


def test_an_attempt_of_a_process_that_died_is_made_again(bench: Bench, hooks: Receiver) -> None:
    listen(bench.tenant, hooks.url)
    end(bench)
    [lost] = delivering._claim(bench.engine, [])
    assert deliver_due() == {"delivered": 0, "failed": 0}
    make_due(bench)
    assert deliver_due()["delivered"] == 1
    # What the first one had to say comes too late.
    delivering._note(bench.engine, [lost], [sending.Answer(None, "late", 1)], middle)
    [done] = deliveries(bench)
    assert (done["status"], len(done["attempts"])) == ("delivered", 1)


def test_the_sweeper_has_sent_what_no_message_tells_of(bench: Bench, hooks: Receiver) -> None:
    listen(bench.tenant, hooks.url)
    end(bench)
    assert send_due(bench.engine) == 0, "a message is on its way"
    bench.execute("DELETE FROM outbox")
    assert send_due(bench.engine) == 1
    assert bench.messages(DELIVER) == [[]]
    deliver_due()
    bench.execute("DELETE FROM outbox")
    assert send_due(bench.engine) == 0
    assert delivering.forget_old(bench.engine) == 0
    bench.execute("UPDATE webhook_events SET created_at = now() - interval '31 days'")
    assert delivering.forget_old(bench.engine) == 1
    assert deliveries(bench) == []


def test_an_endpoint_may_be_deleted_while_batches_end(bench: Bench, hooks: Receiver) -> None:
    endpoint_id = listen(bench.tenant, hooks.url)
    batch_id = bench.run(1)
    bench.answer(bench.claim())
    with bench.engine.connect() as conn, conn.begin():
        conn.exec_driver_sql(f"DELETE FROM webhook_endpoints WHERE id = '{endpoint_id}'")
        ending = threading.Thread(target=finalize, args=(batch_id, bench.engine))
        ending.start()
        while not sql(bench.engine, "SELECT 1 FROM pg_locks WHERE NOT granted"):
            assert ending.is_alive()
    ending.join()
    assert bench.batch(batch_id).completed_at is not None
    assert deliveries(bench) == []


def test_an_endpoint_is_disabled_while_its_failures_are_written_down(bench: Bench, hooks: Receiver) -> None:
    endpoint_id = listen(bench.tenant, hooks.url)
    end(bench)
    hooks.statuses[:] = [500]
    with bench.engine.connect() as conn, conn.begin():
        conn.exec_driver_sql(f"SELECT FROM webhook_endpoints WHERE id = '{endpoint_id}' FOR NO KEY UPDATE")
        delivering_it = threading.Thread(target=deliver_due, args=(bench.engine,))
        delivering_it.start()
        while not sql(bench.engine, "SELECT 1 FROM pg_locks WHERE NOT granted"):
            assert delivering_it.is_alive()
        conn.exec_driver_sql("SET LOCAL lock_timeout = '200ms'")  # less than what ends a deadlock
        assert delivering.disable(conn, endpoint_id, "It was disabled by its owner.")
    delivering_it.join()
    assert [row["status"] for row in deliveries(bench)] == ["failed"]


def test_an_event_that_was_written_while_its_endpoint_was_disabled_is_never_sent(bench: Bench, hooks: Receiver) -> None:
    endpoint_id = listen(bench.tenant, hooks.url)
    batch_id = end(bench)
    deliver_due()
    with bench.engine.begin() as ending:
        add_event(ending, batch_id, BatchStatus.COMPLETED)
        with bench.engine.begin() as conn:
            assert delivering.disable(conn, endpoint_id, "It was disabled by its owner.")

    assert deliver_due() == {"delivered": 0, "failed": 0}

    assert [row["status"] for row in deliveries(bench)] == ["delivered", "failed"]
    bench.execute("UPDATE webhook_endpoints SET disabled_at = NULL")
    make_due(bench)
    assert deliver_due() == {"delivered": 0, "failed": 0}
    assert len(hooks.received) == 1


def test_an_erasure_removes_webhooks_and_what_was_sent(bench: Bench, hooks: Receiver) -> None:
    listen(bench.tenant, hooks.url)
    end(bench)
    erase_tenant(bench.tenant.id, engine=bench.engine)
    for table in ("webhook_endpoints", "webhook_events", "webhook_deliveries"):
        assert sql(bench.engine, f"SELECT count(*) FROM {table}") == [(0,)]
