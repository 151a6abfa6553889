from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import openai
import pytest
from running_gateways import Tenant, error_of
from sqlalchemy import func, select, update

from pipeline.celery import PREPARE
from pipeline.ids import new_file_id
from pipeline.tables import Batch, BatchError, BatchStatus, File, FileView, OnInvalid, OutboxMessage
from pipeline.tables.session import transaction

CHAT = "/v1/chat/completions"


def upload(tenant: Tenant, purpose: Any = "batch") -> str:
    return tenant.client.files.create(file=("in.jsonl", b"{}\n"), purpose=purpose).id


def create(tenant: Tenant, **options: Any) -> Any:
    arguments: dict[str, Any] = {"endpoint": CHAT, "completion_window": "24h", **options}
    arguments.setdefault("input_file_id", upload(tenant))
    return tenant.client.batches.create(**arguments)


def post(tenant: Tenant, change: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Any:
    body = {"input_file_id": upload(tenant), "endpoint": CHAT, "completion_window": "24h", **change}
    body = {key: value for key, value in body.items() if value != "LEAVE OUT"}
    # Escaped, so that a lone surrogate gets through.
    return tenant.http.post(
        "/v1/batches", content=json.dumps(body), headers={"content-type": "application/json", **(headers or {})}
    )


def test_a_new_batch_is_validating(acme: Tenant) -> None:
    file_id = upload(acme)

    batch = create(acme, input_file_id=file_id, metadata={"run": "7"})

    assert batch.model_dump() == {
        "id": batch.id,
        "object": "batch",
        "endpoint": CHAT,
        "model": None,
        "errors": None,
        "input_file_id": file_id,
        "completion_window": "24h",
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": batch.created_at,
        "in_progress_at": None,
        "expires_at": batch.created_at + 86_400,
        "finalizing_at": None,
        "completed_at": None,
        "failed_at": None,
        "expired_at": None,
        "cancelling_at": None,
        "cancelled_at": None,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "usage": {
            "input_tokens": 0,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 0,
        },
        "service_class": "standard",
        "receipts": False,
        "quote_id": None,
        "max_cost": None,
        "pause_reason": None,
        "pause_note": None,
        "metadata": {"run": "7"},
    }
    assert batch.id.startswith("batch_")
    assert acme.client.batches.retrieve(batch.id) == batch


def test_the_client_of_openai_knows_every_field_and_none_is_missing(acme: Tenant) -> None:
    raw = post(acme, {}).json()
    extensions = {"service_class", "receipts", "quote_id", "max_cost", "pause_reason", "pause_note"}
    assert set(raw) == set(openai.types.Batch.model_fields) | extensions


def test_a_batch_and_its_message_are_written_together(acme: Tenant) -> None:
    batch = create(acme)
    with transaction() as session:
        row = session.get_one(Batch, batch.id)
        assert (row.tenant_id, row.on_invalid) == (acme.id, OnInvalid.FAIL)
        # Redis takes messages here: the message is in the outbox, or was published.
        waiting = session.execute(select(OutboxMessage)).scalars().all()
        assert all((message.task, message.args) == (PREPARE, [batch.id]) for message in waiting)


@pytest.mark.parametrize(("window", "seconds"), [("15m", 900), ("2h", 7_200), ("7d", 604_800)])
def test_other_windows_are_an_extension(acme: Tenant, window: str, seconds: int) -> None:
    batch = create(acme, completion_window=window)
    assert (batch.completion_window, batch.expires_at) == (window, batch.created_at + seconds)


@pytest.mark.parametrize(
    ("body", "headers", "kept"),
    [
        ({}, {}, OnInvalid.FAIL),
        ({"on_invalid": "skip"}, {}, OnInvalid.SKIP),
        ({}, {"on-invalid": "skip"}, OnInvalid.SKIP),
        ({}, {"x-on-invalid": "skip"}, OnInvalid.SKIP),
        ({"on_invalid": "fail"}, {"on-invalid": "skip"}, OnInvalid.FAIL),
    ],
)
def test_bad_lines_are_skipped_where_the_client_asks_for_it(
    acme: Tenant, body: Mapping[str, Any], headers: Mapping[str, str], kept: OnInvalid
) -> None:
    batch_id = post(acme, body, headers).json()["id"]
    with transaction() as session:
        assert session.get_one(Batch, batch_id).on_invalid is kept


def test_extensions_go_through_the_stock_client(acme: Tenant) -> None:
    batch = create(
        acme,
        extra_body={"on_invalid": "skip"},
        output_expires_after={"anchor": "created_at", "seconds": 7_200},
    )
    with transaction() as session:
        row = session.get_one(Batch, batch.id)
        assert (row.on_invalid, row.output_expires_after_seconds) == (OnInvalid.SKIP, 7_200)


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("no file", {"input_file_id": "LEAVE OUT"}, "input_file_id", "Missing required parameter: 'input_file_id'."),
    ("no endpoint", {"endpoint": "LEAVE OUT"}, "endpoint", "Missing required parameter: 'endpoint'."),
    ("no window", {"completion_window": "LEAVE OUT"}, "completion_window", "Missing required parameter"),
    ("endpoint", {"endpoint": "/v1/embeddings"}, "endpoint", "Supported endpoints: /v1/chat/completions, /v1/comp"),
    ("window", {"completion_window": "25 hours"}, "completion_window", "give '24h'"),
    ("short window", {"completion_window": "14m"}, "completion_window", "from '15m' to '7d'"),
    ("long window", {"completion_window": "8d"}, "completion_window", "from '15m' to '7d'"),
    ("unknown", {"priority": "high"}, "priority", "Unknown parameter: 'priority'."),
    ("on_invalid", {"on_invalid": "ignore"}, "on_invalid", "'fail' or 'skip'"),
    ("long file id", {"input_file_id": "f" * 129}, "input_file_id", "at most 128"),
    ("file type", {"input_file_id": 7}, "input_file_id", "string"),
    ("file", {"input_file_id": "file-x"}, "input_file_id", "no such File object: file-x"),
    ("file with NUL", {"input_file_id": "file-\x00"}, "input_file_id", "NUL"),
    ("pairs", {"metadata": {str(n): "" for n in range(17)}}, "metadata", "at most 16"),
    ("long key", {"metadata": {"k" * 65: "v"}}, "metadata." + "k" * 65, "at most 64"),
    ("long value", {"metadata": {"k": "v" * 513}}, "metadata.k", "at most 512"),
    ("number", {"metadata": {"k": 1}}, "metadata.k", "string"),
    ("NUL", {"metadata": {"k": "\x00"}}, "metadata.k", "NUL"),
    ("surrogate", {"metadata": {"k": "\ud800"}}, "metadata.k", "unicode"),
    ("file with surrogate", {"input_file_id": "\ud800"}, "input_file_id", "unicode"),
    ("metadata type", {"metadata": ["x"]}, "metadata", "dictionary"),
    (
        "expiry",
        {"output_expires_after": {"anchor": "created_at", "seconds": 1}},
        "output_expires_after.seconds",
        "3600",
    ),
    ("anchor", {"output_expires_after": {"seconds": 3600}}, "output_expires_after.anchor", "Missing"),
]


def test_a_batch_that_is_not_right_is_refused(acme: Tenant, subtests: pytest.Subtests) -> None:
    for name, change, param, message in REFUSED:
        with subtests.test(name):
            response = post(acme, change)

            error = error_of(response)
            assert (response.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
            assert message in str(error["message"])
    with transaction() as session:
        assert session.execute(select(func.count()).select_from(Batch)).scalar_one() == 0


def test_metadata_of_the_greatest_size_is_accepted(acme: Tenant) -> None:
    metadata = {f"{n:064}": "v" * 512 for n in range(16)}
    assert create(acme, metadata=metadata).metadata == metadata


NO_OBJECTS: list[tuple[bytes, str, str | None]] = [
    (b"{", "application/json", "invalid_json"),
    (b"[]", "application/json", "invalid_type"),
    (b"", "application/json", "invalid_type"),
    (b"{}", "text/plain", "invalid_type"),
    (b'{"input_file_id": "\xff"}', "application/json", None),
]


def test_a_body_that_is_no_object_is_refused(acme: Tenant, subtests: pytest.Subtests) -> None:
    for content, kind, code in NO_OBJECTS:
        with subtests.test(content=content, kind=kind):
            response = acme.http.post("/v1/batches", content=content, headers={"content-type": kind})
            assert (response.status_code, error_of(response)["code"]) == (400, code)


def test_a_file_of_another_purpose_is_refused(acme: Tenant) -> None:
    response = post(acme, {"input_file_id": upload(acme, "user_data")})
    assert response.status_code == 400
    assert "uploaded for 'user_data'" in str(error_of(response)["message"])


def test_a_deleted_file_is_refused(acme: Tenant) -> None:
    file_id = upload(acme)
    acme.client.files.delete(file_id)
    with pytest.raises(openai.BadRequestError, match=f"no such File object: {file_id}"):
        create(acme, input_file_id=file_id)


def test_batches_are_listed_newest_first_in_pages(acme: Tenant) -> None:
    file_id = upload(acme)
    ids = [create(acme, input_file_id=file_id).id for _ in range(5)]

    first = acme.client.batches.list(limit=2)
    assert ([batch.id for batch in first.data], first.has_more) == ([ids[4], ids[3]], True)
    assert [batch.id for batch in acme.client.batches.list(limit=2)] == ids[::-1]
    raw = acme.http.get("/v1/batches", params={"after": ids[3], "limit": 2}).json()
    assert (raw["object"], raw["first_id"], raw["last_id"], raw["has_more"]) == ("list", ids[2], ids[1], True)


def test_a_list_without_batches_is_empty(acme: Tenant) -> None:
    raw = acme.http.get("/v1/batches").json()
    assert raw == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


@pytest.mark.parametrize(("query", "param"), [("limit=0", "limit"), ("limit=101", "limit"), ("after=x", "after")])
def test_a_list_refuses_what_it_does_not_know(acme: Tenant, query: str, param: str) -> None:
    response = acme.http.get(f"/v1/batches?{query}")
    assert (response.status_code, error_of(response)["param"]) == (400, param)


def test_a_batch_is_cancelled_once_and_again(acme: Tenant) -> None:
    batch = create(acme)

    cancelled = acme.client.batches.cancel(batch.id)

    assert cancelled.status == "cancelling"
    assert cancelled.cancelling_at is not None
    assert acme.client.batches.cancel(batch.id) == cancelled


@pytest.mark.parametrize("status", ["completed", "failed", "expired"])
def test_a_batch_that_has_ended_is_not_cancelled(acme: Tenant, status: str) -> None:
    batch = create(acme)
    with transaction() as session:
        session.execute(update(Batch).values(status=BatchStatus(status)))

    with pytest.raises(openai.ConflictError) as caught:
        acme.client.batches.cancel(batch.id)
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert caught.value.body["message"] == f"Cannot cancel a batch with status '{status}'."  # type: ignore[index]


def test_all_errors_of_a_failed_batch_are_shown_and_a_list_shows_some(acme: Tenant) -> None:
    batch = create(acme)
    with transaction() as session:
        session.execute(update(Batch).values(status=BatchStatus.FAILED, failed_at=func.now()))
        session.add(BatchError(batch_id=batch.id, line=0, code="empty_file", param=None, message="The file is empty."))
        for line in range(1, 151):
            session.add(
                BatchError(batch_id=batch.id, line=line, code="invalid_method", param="method", message="Use POST.")
            )

    failed = acme.client.batches.retrieve(batch.id)

    assert failed.status == "failed"
    assert failed.errors.object == "list"
    assert [error.line for error in failed.errors.data] == [None, *range(1, 151)]
    assert failed.errors.data[7].model_dump() == {
        "code": "invalid_method",
        "line": 7,
        "message": "Use POST.",
        "param": "method",
    }
    assert acme.client.batches.list().data[0].errors.data == failed.errors.data[:100]


def test_skipped_lines_count_as_failed(acme: Tenant) -> None:
    batch = create(acme)
    with transaction() as session:
        session.execute(
            update(Batch).values(
                status=BatchStatus.IN_PROGRESS,
                num_requests=10,
                num_skipped=2,
                num_succeeded=5,
                num_unsuccessful=1,
                num_prompt_tokens=100,
                num_cached_tokens=40,
                num_completion_tokens=7,
            )
        )
        session.add(BatchError(batch_id=batch.id, line=3, code="invalid_url", param="url", message="No."))

    shown = acme.client.batches.retrieve(batch.id)

    assert shown.request_counts.model_dump() == {"total": 12, "completed": 5, "failed": 3}
    assert shown.usage.model_dump(exclude={"output_tokens_details"}) == {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 40},
        "output_tokens": 7,
        "total_tokens": 107,
    }
    assert shown.errors is None


def test_an_error_file_is_read_while_its_batch_runs_and_can_be_deleted(acme: Tenant) -> None:
    batch = create(acme)
    with transaction() as session:
        session.execute(update(Batch).values(status=BatchStatus.IN_PROGRESS, num_skipped=1))
        session.add(
            BatchError(batch_id=batch.id, line=3, custom_id="c", code="invalid_url", param="url", message="No.")
        )
        file = File(
            id=new_file_id(),
            tenant_id=acme.id,
            filename="error.jsonl",
            purpose="batch_output",
            num_bytes=0,
            batch_id=batch.id,
            view=FileView.ERROR,
        )
        session.add(file)

    content = acme.client.files.content(file.id)
    assert content.response.headers.get("content-length") is None
    assert content.json()["custom_id"] == "c"
    assert acme.client.files.list(purpose="batch_output").data[0].id == file.id

    acme.client.files.delete(file.id)
    with pytest.raises(openai.NotFoundError):
        acme.client.files.content(file.id)
    with transaction() as session:
        assert session.execute(select(func.count()).select_from(BatchError)).scalar_one() == 1
