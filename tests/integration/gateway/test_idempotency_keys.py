from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import openai
import pytest
from running_gateways import Tenant, error_of, wait_for
from seeds import sql
from sqlalchemy import Engine, event, text

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


def test_what_is_null_and_what_is_left_out_are_the_same_content(acme: Tenant, file_id: str) -> None:
    nulls = {"receipts": None, "quote_id": None, "max_cost": None, "on_invalid": None, "metadata": None}
    assert submit(acme, file_id, "a", extra_body=nulls) == submit(acme, file_id, "a")


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


@pytest.mark.parametrize(("num_others", "status"), [(1, 200), (9, 409)])
def test_a_key_that_is_gone_when_it_is_looked_up_is_claimed_again(
    num_others: int, status: int, acme: Tenant, file_id: str, database: Engine
) -> None:
    """As when it is forgotten at this moment; that others claim it again and again is what nobody sees."""
    submit(acme, file_id, "a")
    sql(database, "CREATE TABLE others AS SELECT * FROM idempotency_keys")
    claims: list[str] = []

    def is_claim(arguments: Sequence[Any]) -> bool:
        return str(arguments[2]).startswith("INSERT INTO idempotency_keys (")

    def be_first(*arguments: Any) -> None:
        if is_claim(arguments) and len(claims) < num_others:
            sql(database, "INSERT INTO idempotency_keys SELECT * FROM others ON CONFLICT DO NOTHING")

    def be_gone(*arguments: Any) -> None:
        if is_claim(arguments):
            claims.append(arguments[2])
            sql(database, "DELETE FROM idempotency_keys")

    event.listen(database, "before_cursor_execute", be_first)
    event.listen(database, "after_cursor_execute", be_gone)
    try:
        body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
        response = acme.http.post("/v1/batches", json=body, headers={"Idempotency-Key": "a"})
    finally:
        event.remove(database, "before_cursor_execute", be_first)
        event.remove(database, "after_cursor_execute", be_gone)
        sql(database, "DROP TABLE others")
    assert response.status_code == status
    if status == 409:
        assert error_of(response)["code"] == "idempotency_key_in_use"


def upload(tenant: Tenant, content: bytes = b"{}\n", *, key: str | None = "a", name: str = "in.jsonl") -> str:
    headers = {} if key is None else {"Idempotency-Key": key}
    return tenant.client.files.create(file=(name, content), purpose="batch", extra_headers=headers).id


def blobs(tmp_path: Path) -> int:
    return sum(1 for path in (tmp_path / "blobs" / "uploads").iterdir())


def test_the_same_upload_twice_is_one_file_and_one_blob(acme: Tenant, database: Engine, tmp_path: Path) -> None:
    first = upload(acme)
    assert upload(acme) == first
    assert blobs(tmp_path) == 1
    assert acme.client.files.content(first).read() == b"{}\n"
    assert upload(acme, key="b") != first
    assert upload(acme, key=None) != first
    assert blobs(tmp_path) == 3


@pytest.mark.parametrize("change", [{"content": b"{ }\n"}, {"name": "other.jsonl"}])
def test_an_upload_of_other_content_under_the_same_key_is_refused(
    acme: Tenant, tmp_path: Path, change: dict[str, Any]
) -> None:
    upload(acme)
    with pytest.raises(openai.ConflictError) as caught:
        upload(acme, **change)
    assert caught.value.code == "idempotency_key_reused"
    assert blobs(tmp_path) == 1


def test_uploads_at_once_under_one_key_are_one_file(acme: Tenant, database: Engine, tmp_path: Path) -> None:
    patient = acme.client.with_options(max_retries=8)
    with ThreadPoolExecutor(8) as clients:
        ids = set(clients.map(lambda _: upload(dataclasses.replace(acme, client=patient)), range(8)))
    assert len(ids) == 1
    assert blobs(tmp_path) == 1


def test_cancelling_again_under_the_same_key_has_the_same_answer(acme: Tenant, file_id: str, database: Engine) -> None:
    batch_id = submit(acme, file_id, None)
    headers = {"Idempotency-Key": "a"}
    first = acme.client.batches.cancel(batch_id, extra_headers=headers)
    assert first.status == "cancelling"
    sql(database, "UPDATE batches SET status = 'cancelled', cancelled_at = now()")
    assert acme.client.batches.cancel(batch_id, extra_headers=headers) == first
    assert acme.client.batches.cancel(batch_id).status == "cancelled"
    with pytest.raises(openai.ConflictError):
        acme.client.batches.cancel(submit(acme, file_id, None), extra_headers=headers)


def test_a_call_that_is_being_answered_is_not_begun_again(acme: Tenant, file_id: str, database: Engine) -> None:
    batch_id = submit(acme, file_id, None)
    headers = {"Idempotency-Key": "a"}
    with ThreadPoolExecutor(1) as clients:
        with database.begin() as conn:
            conn.execute(text("SELECT FROM batches FOR UPDATE"))
            first = clients.submit(acme.client.batches.cancel, batch_id, extra_headers=headers)
            wait_for(lambda: bool(sql(database, "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'")))
            second = acme.http.post(f"/v1/batches/{batch_id}/cancel", headers=headers)
            assert (second.status_code, error_of(second)["code"]) == (409, "idempotency_key_in_use")
            assert int(second.headers["retry-after"]) > 0
        first.result()
    assert acme.http.post(f"/v1/batches/{batch_id}/cancel", headers=headers).status_code == 200


def test_a_call_that_was_refused_leaves_its_key_free(acme: Tenant, file_id: str) -> None:
    headers = {"Idempotency-Key": "a"}
    with pytest.raises(openai.NotFoundError):
        acme.client.batches.cancel("batch_none", extra_headers=headers)
    acme.client.batches.cancel(submit(acme, file_id, None), extra_headers=headers)


def test_a_project_has_keys_of_its_own(acme: Tenant, join: Callable[..., Tenant], database: Engine) -> None:
    search, mail = join("acme", project="search"), join("acme", project="mail")
    files = [upload(tenant) for tenant in (acme, search, mail)]
    assert len(set(files)) == 3
    batches = [submit(tenant, file, "a") for tenant, file in zip((acme, search, mail), files, strict=True)]
    assert len(set(batches)) == 3


def test_old_answers_are_forgotten(acme: Tenant, database: Engine, redis_url: str) -> None:
    first = upload(acme)
    sql(database, "UPDATE idempotent_answers SET created_at = now() - :age", age=idempotency.KEPT + timedelta(hours=1))
    sweep(database)
    assert upload(acme) != first
