from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import openai
import pytest
from running_gateways import Tenant
from seeds import sql
from sqlalchemy import Engine

from pipeline.jobs import idempotency
from pipeline.jobs.sweeping import sweep

CHAT = "/v1/chat/completions"


@pytest.fixture
def file_id(acme: Tenant) -> str:
    return acme.client.files.create(file=("in.jsonl", b"{}\n"), purpose="batch").id


def submit(tenant: Tenant, file_id: str, key: str | None, **options: Any) -> str:
    headers = {} if key is None else {"Idempotency-Key": key}
    arguments: dict[str, Any] = {"endpoint": CHAT, "completion_window": "24h", **options}
    return tenant.client.batches.create(input_file_id=file_id, extra_headers=headers, **arguments).id


def num_batches(database: Engine) -> int:
    return int(sql(database, "SELECT count(*) FROM batches")[0][0])


def test_the_same_submission_by_twenty_clients_at_once_is_one_batch(
    acme: Tenant, file_id: str, database: Engine
) -> None:
    with ThreadPoolExecutor(20) as clients:
        ids = set(clients.map(lambda _: submit(acme, file_id, "nightly-7"), range(20)))
    assert len(ids) == 1
    assert num_batches(database) == 1
    assert sql(database, "SELECT count(*) FROM outbox") in ([(0,)], [(1,)])  # or published by now


def test_another_key_or_none_makes_another_batch(acme: Tenant, file_id: str, database: Engine) -> None:
    keys = ["a", "b", None, None]
    assert len({submit(acme, file_id, key) for key in keys}) == 4
    assert num_batches(database) == 4


def test_a_key_with_other_content_is_refused(acme: Tenant, file_id: str, database: Engine) -> None:
    first = submit(acme, file_id, "a")
    for change in ({"metadata": {"run": "2"}}, {"extra_body": {"on_invalid": "skip"}}):
        with pytest.raises(openai.ConflictError) as caught:
            submit(acme, file_id, "a", **change)
        assert caught.value.code == "idempotency_key_reused"
        assert first in caught.value.message
    assert num_batches(database) == 1


def test_keys_of_another_tenant_are_other_keys(acme: Tenant, globex: Tenant, file_id: str) -> None:
    theirs = globex.client.files.create(file=("in.jsonl", b"{}\n"), purpose="batch").id
    assert submit(acme, file_id, "a") != submit(globex, theirs, "a")


def test_a_submission_that_was_refused_leaves_its_key_free(acme: Tenant, file_id: str) -> None:
    with pytest.raises(openai.BadRequestError):
        submit(acme, "file-missing", "a")
    submit(acme, file_id, "a")


@pytest.mark.parametrize("key", ["", "k" * 256, "sm\u00f6rg\u00e5s".encode("latin-1").decode("latin-1")])
def test_a_key_that_is_none_is_refused(acme: Tenant, file_id: str, key: str) -> None:
    response = acme.http.post(
        "/v1/batches",
        json={"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"},
        headers={b"Idempotency-Key": key.encode("latin-1")},  # type: ignore[dict-item]
    )
    assert response.status_code == 400
    assert "Idempotency-Key" in response.json()["error"]["message"]


def test_old_keys_are_forgotten(acme: Tenant, file_id: str, database: Engine, redis_url: str) -> None:
    first = submit(acme, file_id, "a")
    sql(database, "UPDATE idempotency_keys SET created_at = now() - :age", age=idempotency.KEPT - timedelta(hours=1))
    sweep(database)
    assert submit(acme, file_id, "a") == first
    sql(database, "UPDATE idempotency_keys SET created_at = now() - :age", age=idempotency.KEPT + timedelta(hours=1))
    sweep(database)
    assert submit(acme, file_id, "a") != first
