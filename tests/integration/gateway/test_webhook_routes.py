"""`client.webhooks` of the openai package against our routes, and our own routes beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from running_gateways import Tenant, error_of, wait_for
from seeds import sql
from sqlalchemy import Engine
from webhook_receivers import Receiver, receiver

from pipeline.gateway.webhooks import MAX_TESTS
from pipeline.ids import new_id
from pipeline.settings import PREFIX, get_settings
from pipeline.tables import BatchStatus
from pipeline.tables.session import transaction
from pipeline.tenancy.audit_log import list_entries
from pipeline.webhooks.delivering import deliver_due
from pipeline.webhooks.endpoints import MAX_ENDPOINTS
from pipeline.webhooks.events import EventType, add_event

URL = "https://example.com/hooks"


@pytest.fixture(autouse=True)
def settings(settings_env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings_env.setenv(f"{PREFIX}WEBHOOK_HTTP", "true")
    settings_env.setenv(f"{PREFIX}WEBHOOK_PRIVATE_NETWORKS", "127.0.0.0/8,::1/128")
    settings_env.setenv(f"{PREFIX}SIGNING_KEY_FILE", str(tmp_path / "signing_key.pem"))
    get_settings.cache_clear()


@pytest.fixture
def hooks() -> Iterator[Receiver]:
    with receiver() as kept:
        yield kept


def make(acme: Tenant, url: str = URL) -> Any:
    return acme.client.webhooks.create(name="hooks", url=url, event_types=["batch.completed", "batch.failed"])


def happen(acme: Tenant, database: Engine) -> str:
    """A batch that has failed; returns its id."""
    file = acme.client.files.create(file=("in.jsonl", b"{}\n"), purpose="batch")
    batch = acme.client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    with transaction() as session:
        add_event(session, batch.id, BatchStatus.FAILED)
    return batch.id


def test_endpoints_are_made_listed_changed_and_deleted_by_the_client_of_openai(acme: Tenant) -> None:
    webhooks = acme.client.webhooks
    made = make(acme)
    assert made.signing_secret.startswith("whsec_")
    assert made.signing_secret_hint == f"whsec_…{made.signing_secret[-4:]}"
    assert [one.id for one in webhooks.list()] == [made.id]
    assert made.signing_secret not in acme.http.get("/v1/webhook_endpoints").text
    changed = webhooks.update(made.id, name="others", event_types=["batch.expired", "batch.expired"])
    assert (changed.name, changed.url, changed.event_types) == ("others", URL, ["batch.expired"])
    assert webhooks.retrieve(made.id) == changed
    assert webhooks.event_types.list().data == list(EventType)
    assert webhooks.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        webhooks.retrieve(made.id)


def test_a_sample_is_sent_at_once_and_verified_by_the_client(acme: Tenant, hooks: Receiver) -> None:
    made = make(acme, hooks.url)
    hooks.statuses[:] = [200, 500]
    assert acme.client.webhooks.test(made.id, event_type="batch.completed").status_code == 200
    event = acme.client.webhooks.unwrap(hooks.received[0].body, hooks.received[0].headers, secret=made.signing_secret)
    assert event.type == "batch.completed"
    named = {"Idempotency-Key": "sample"}
    for _ in range(2):
        result = acme.client.webhooks.test(made.id, event_type="batch.failed", extra_headers=named)
        assert result.status_code == 500
    assert hooks.received[1].id == hooks.received[2].id != hooks.received[0].id
    closed = make(acme, "http://127.0.0.1:1/")
    with pytest.raises(openai.ConflictError, match="No connection: "):
        acme.client.webhooks.test(closed.id, event_type="batch.failed")


def test_few_samples_are_sent_at_once_so_that_slow_receivers_keep_no_call_waiting(
    acme: Tenant, hooks: Receiver
) -> None:
    hooks.hangs = True
    path = f"/v1/webhook_endpoints/{make(acme, hooks.url).id}/test"

    def send() -> httpx2.Response:
        return acme.http.post(path, json={"event_type": "batch.completed"})

    with ThreadPoolExecutor() as threads:
        sent = [threads.submit(send) for _ in range(MAX_TESTS)]
        wait_for(lambda: len(hooks.received) == MAX_TESTS)
        refused = send()
        assert (refused.status_code, error_of(refused)["code"]) == (429, "too_many_webhook_tests")
        assert int(refused.headers["retry-after"]) > 0
        hooks.hangs = False
        hooks.released.set()
        assert {one.result().status_code for one in sent} == {409}
    assert send().status_code == 200


def test_the_old_secret_holds_for_a_day_if_that_is_asked_for(acme: Tenant, database: Engine, hooks: Receiver) -> None:
    first = make(acme, hooks.url)
    second = acme.client.webhooks.rotate_secret(first.id, keep_old_secret_active_for_24_hours=True)
    assert second.signing_secret != first.signing_secret
    happen(acme, database)
    deliver_due()
    third = acme.client.webhooks.rotate_secret(first.id)
    happen(acme, database)
    deliver_due()

    def verifies(number: int, made: Any) -> bool:
        message = hooks.received[number]
        try:
            acme.client.webhooks.verify_signature(message.body, message.headers, secret=made.signing_secret)
        except openai.InvalidWebhookSignatureError:
            return False
        return True

    assert [verifies(0, made) for made in (first, second, third)] == [True, True, False]
    assert [verifies(1, made) for made in (first, second, third)] == [False, False, True]


def test_a_secret_is_kept_nowhere(acme: Tenant, database: Engine, log_path: Path) -> None:
    named = {"Idempotency-Key": "one"}
    made = [
        acme.client.webhooks.create(name="hooks", url=URL, event_types=["batch.failed"], extra_headers=named)
        for _ in range(2)
    ]
    assert made[0] == made[1]
    secret = made[0].signing_secret
    tables = [name for (name,) in sql(database, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
    for table in tables:
        rows = sql(database, f"SELECT to_jsonb(t)::text FROM {table} t")
        assert not [row for (row,) in rows if secret in row], table
    assert secret not in log_path.read_text()


def test_deliveries_are_shown_with_their_attempts_and_sent_again(
    acme: Tenant, database: Engine, hooks: Receiver
) -> None:
    made = make(acme, hooks.url)
    batch_id = happen(acme, database)
    hooks.statuses[:] = [500, 200]
    deliver_due()
    sql(database, "UPDATE webhook_deliveries SET status = 'failed'")
    path = f"/v1/webhook_endpoints/{made.id}/deliveries"
    [failed] = acme.http.get(path, params={"status": "failed"}).json()["data"]
    assert (failed["batch_id"], failed["event_type"], failed["num_attempts"]) == (batch_id, "batch.failed", 1)
    assert failed["attempts"][0]["error"] == "The receiver answered with status 500."
    assert failed["next_attempt_at"] is None
    assert acme.http.get(path, params={"status": "pending"}).json()["data"] == []

    again = acme.http.post(f"{path}/{failed['id']}/resend").json()
    assert again["status"] == "pending"
    deliver_due()

    [done] = acme.http.get(path).json()["data"]
    assert (done["status"], [one["status"] for one in done["attempts"]]) == ("delivered", [500, 200])
    assert hooks.received[0].id == hooks.received[1].id == done["event_id"]
    missing = acme.http.post(f"{path}/whd_none/resend")
    assert (missing.status_code, error_of(missing)["code"]) == (404, "webhook_delivery_not_found")


def test_an_endpoint_is_disabled_and_enabled(acme: Tenant, database: Engine, hooks: Receiver) -> None:
    made = make(acme, hooks.url)
    happen(acme, database)
    path = f"/v1/webhook_endpoints/{made.id}"
    disabled = acme.http.post(path, json={"disabled": True}).json()
    assert disabled["disabled_reason"] == "It was disabled by its owner."
    assert deliver_due() == {"delivered": 0, "failed": 0}
    [given_up] = acme.http.get(f"{path}/deliveries").json()["data"]
    assert given_up["status"] == "failed"
    resend = f"{path}/deliveries/{given_up['id']}/resend"
    assert error_of(acme.http.post(resend))["code"] == "webhook_endpoint_disabled"
    enabled = acme.http.post(path, json={"disabled": False}).json()
    assert (enabled["disabled_at"], enabled["disabled_reason"]) == (None, None)
    assert acme.http.post(resend).status_code == 200
    assert deliver_due()["delivered"] == 1


def test_every_change_is_in_the_audit_log_by_the_key_that_made_it(acme: Tenant) -> None:
    made = acme.client.webhooks.create(name="n", url=f"{URL}/token-in-path", event_types=["batch.failed"])
    acme.client.webhooks.update(made.id, name="m")
    acme.client.webhooks.update(made.id, name="m")
    acme.client.webhooks.rotate_secret(made.id)
    acme.http.post(f"/v1/webhook_endpoints/{made.id}", json={"disabled": True})
    acme.client.webhooks.delete(made.id)
    with transaction() as session:
        entries = list_entries(session, object=made.id)
    acts = ["create", "update", "rotate", "disable", "delete"]
    assert [entry.act for entry in reversed(entries)] == [f"webhook.{act}" for act in acts]
    assert {entry.actor for entry in entries} == {sql_key(acme)}
    assert "token-in-path" not in json.dumps([entry.details for entry in entries])


def sql_key(acme: Tenant) -> str:
    from pipeline.tables.session import get_engine

    [(key_id,)] = sql(get_engine(), "SELECT id FROM api_keys WHERE tenant_id = :id", id=acme.id)
    return str(key_id)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"url": "ftp://example.com"}, "url"),
        ({"url": "https://user:pw@example.com"}, "url"),
        ({"event_types": []}, "event_types"),
        ({"event_types": ["response.completed"]}, "event_types.0"),
        ({"name": ""}, "name"),
        ({"name": "\x00"}, "name"),
        ({"secret": "mine"}, "secret"),
    ],
)
def test_what_can_not_be_a_webhook_is_refused(acme: Tenant, body: dict[str, Any], param: str) -> None:
    good = {"name": "n", "url": URL, "event_types": ["batch.failed"]}
    response = acme.http.post("/v1/webhook_endpoints", json={**good, **body})
    assert (response.status_code, error_of(response)["param"]) == (400, param)


def test_a_tenant_has_a_bounded_number_of_webhooks(acme: Tenant, database: Engine) -> None:
    made = make(acme)
    for _ in range(MAX_ENDPOINTS - 1):
        sql(
            database,
            "INSERT INTO webhook_endpoints (id, tenant_id, name, url, event_types, secret_hint)"
            " VALUES (:id, :tenant, 'n', 'https://x', '{}', '')",
            id=new_id("webhook"),
            tenant=acme.id,
        )
    with pytest.raises(openai.ConflictError, match="may have no more"):
        make(acme)
    acme.client.webhooks.delete(made.id)
    make(acme)
