from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from running_gateways import Tenant, error_of, serve, wait_for
from seeds import seed_tenant, sql
from sqlalchemy import Engine
from submitting import Bench, request_line

from pipeline import storage
from pipeline.errors import UserError
from pipeline.jobs import quoting
from pipeline.jobs.audit import audit
from pipeline.jobs.cancelling import end_cancelled
from pipeline.jobs.finalizing import finalize
from pipeline.jobs.preparing import prepare
from pipeline.jobs.quoting import request_quote
from pipeline.tables import Base, Batch, File, OutcomeKind, QuoteStatus
from pipeline.tables.session import transaction
from pipeline.tenancy import erasing
from pipeline.tenancy.audit_log import list_entries
from pipeline.tenancy.erasing import erase_tenant, list_erasures
from pipeline.tenancy.keys import InvalidKeyError, authenticate, create_key, rotate_key
from pipeline.tokenization import pack_token_ids

#: In whatever a client can write.
SECRET = "Mrs Dalloway"
#: A prompt, and how its row is written.
PROMPT = [13, 18, 15, 3, 22, 61, 44, 9]
TOKENS = pack_token_ids(PROMPT).hex()
CONTENT = {"requests", "results", "files", "batches", "batch_errors", "idempotent_answers", "quotes"}
#: What stays: the numbers of a bill.
KEPT = {
    "metered_usage": "SELECT * FROM metered_usage ORDER BY 1, 2",
    "usage_prices": "SELECT * FROM usage_prices ORDER BY request_id, meter, revision",
    "ledger_entries": "SELECT * FROM ledger_entries ORDER BY 1, 2",
    "usage_rollups": "SELECT * FROM usage_rollups ORDER BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10",
    "counters": "SELECT id, num_requests, num_succeeded, num_prompt_tokens, num_completion_tokens FROM batches",
}


@pytest.fixture
def signing(set_before_start: Any, tmp_path: Path) -> None:
    set_before_start("SIGNING_KEY_FILE", tmp_path / "key.pem")


@pytest.fixture
def bench(database: Engine, redis_url: str, signing: None, tmp_path: Path) -> Bench:
    return Bench.make(database, tmp_path / "tiny")


def submit(bench: Bench) -> str:
    """A batch that says the secret wherever a client can."""
    lines = [request_line(f"{SECRET} {number}", prompt=PROMPT, stop=[SECRET]) for number in range(4)]
    bad = {**request_line(f"{SECRET} bad"), "body": {"model": "tiny", "prompt": "x", SECRET: 1}}
    return bench.submit([*lines, bad], on_invalid="skip", metadata={"who": SECRET})  # type: ignore[arg-type]


def run(bench: Bench) -> str:
    batch_id = submit(bench)
    prepare(batch_id)
    claimed = bench.claim()
    bench.answer(claimed, 2)
    bench.answer(claimed, 1, OutcomeKind.FAILED)
    bench.answer(claimed)
    finalize(batch_id)
    key = {"tenant_id": bench.tenant.id, "key": SECRET, "said": json.dumps({"filename": SECRET})}
    sql(bench.engine, "UPDATE results SET body = replace(body, '{\"id\"', :said)", said=f'{{"text":"{SECRET}","id"')
    sql(bench.engine, "UPDATE files SET filename = :name", name=f"{SECRET}.jsonl")
    sql(bench.engine, "UPDATE requests SET error_message = :name WHERE outcome = 'failed'", name=SECRET)
    sql(
        bench.engine,
        "INSERT INTO idempotent_answers (tenant_id, route, key, fingerprint, answer)"
        " VALUES (:tenant_id, 'create_file', :key, 'x', :said) ON CONFLICT DO NOTHING",
        **key,
    )
    with transaction() as session:
        batch = session.get_one(Batch, batch_id)
        quote = request_quote(
            session,
            tenant_id=bench.tenant.id,
            api_key_id=bench.tenant.api_key_id,
            project_id=None,
            input_file=session.get_one(File, batch.input_file_id),
            endpoint=batch.endpoint,
            on_invalid=batch.on_invalid,
            service_class=batch.service_class,
        )
        quote.errors = [{"message": SECRET}]
    sql(bench.engine, "DELETE FROM outbox")
    return batch_id


def says_secret(database: Engine) -> set[str]:
    """Tables with a row that holds the secret, in letters or tokens."""
    found = set()
    for table in Base.metadata.sorted_tables:
        rows = sql(database, f'SELECT t::text FROM "{table.name}" t')
        if any(SECRET in row or TOKENS in row for (row,) in rows):
            found.add(table.name)
    return found


def kept(database: Engine) -> dict[str, list[tuple[Any, ...]]]:
    return {name: sql(database, query) for name, query in KEPT.items()}


def test_nothing_of_the_content_is_left_and_every_number_of_the_bill_is(bench: Bench, tmp_path: Path) -> None:
    run(bench)
    assert says_secret(bench.engine) == CONTENT
    prompts = sql(bench.engine, "SELECT prompt_token_ids::text FROM requests")
    assert all(TOKENS in prompt for (prompt,) in prompts)
    before = kept(bench.engine)
    assert all(before.values())

    record = erase_tenant(bench.tenant.id)

    assert says_secret(bench.engine) == set()
    assert kept(bench.engine) == before
    assert audit(bench.engine, at_rest=True).violations == []
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []
    assert record.content["erased"] == {
        "batches": 1,
        "requests": 4,
        "answers": 3,
        "errors": 1,
        "files": 3,
        "file_bytes": sql(bench.engine, "SELECT sum(num_bytes)::bigint FROM files")[0][0],
        "revoked_keys": 1,
    }


def test_old_versions_of_rows_are_left_to_be_overwritten(bench: Bench) -> None:
    run(bench)
    erase_tenant(bench.tenant.id)
    # Partitions are vacuumed with their table.
    never = sql(bench.engine, "SELECT relname FROM pg_stat_user_tables WHERE vacuum_count = 0")
    assert not {"files", "batches", "partial_outputs"} & {name for (name,) in never}
    assert not [name for (name,) in never if name.startswith(("requests_", "results_"))]


def test_another_tenant_keeps_everything(bench: Bench) -> None:
    run(bench)
    mine = bench.tenant
    bench.tenant = seed_tenant(bench.engine, "globex")
    theirs = run(bench)
    content = sql(bench.engine, "SELECT * FROM requests WHERE batch_id = :id ORDER BY id", id=theirs)
    erase_tenant(mine.id)
    assert sql(bench.engine, "SELECT * FROM requests WHERE batch_id = :id ORDER BY id", id=theirs) == content
    assert sql(bench.engine, "SELECT count(*) FROM api_keys WHERE revoked_at IS NULL") == [(1,)]
    with transaction() as session:
        assert session.get_one(Batch, theirs).metadata_ == {"who": SECRET}


def test_the_record_is_signed_and_shows_whether_it_was_changed(bench: Bench) -> None:
    run(bench)
    record = erase_tenant(bench.tenant.id)
    with transaction() as session:
        assert list_erasures(session, bench.tenant.id) == [record]
        entry = list_entries(session, act="tenant.erase")[0]
    assert record.is_valid
    assert entry.details["erasure"] == record.id
    assert SECRET not in record.statement
    sql(bench.engine, "ALTER TABLE erasures DISABLE TRIGGER ALL")
    sql(bench.engine, "UPDATE erasures SET statement = replace(statement, 'requests', 'answers')")
    with transaction() as session:
        assert [one.is_valid for one in list_erasures(session)] == [False]


def test_a_tenant_with_open_batches_is_not_erased_and_keeps_its_keys(bench: Bench) -> None:
    batch_id = submit(bench)
    prepare(batch_id)
    with pytest.raises(UserError, match=f"1 batches of this tenant have not ended, such as {batch_id}"):
        erase_tenant(bench.tenant.id)
    assert "requests" in says_secret(bench.engine)
    assert sql(bench.engine, "SELECT count(*) FROM api_keys WHERE revoked_at IS NOT NULL") == [(0,)]
    with pytest.raises(UserError, match="still ending"):
        erase_tenant(bench.tenant.id, is_cancelling=True, wait_seconds=0)
    assert bench.batch(batch_id).cancelling_at is not None
    end_cancelled(batch_id)  # what control does
    erase_tenant(bench.tenant.id, is_cancelling=True, wait_seconds=0)
    assert says_secret(bench.engine) == set()


def test_an_erasure_that_was_interrupted_goes_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        run(bench)
    real, calls = storage.delete_blob, []

    def fail_once(key: str) -> None:
        calls.append(key)
        if len(calls) == 2:
            raise storage.StorageError("no")
        real(key)

    with monkeypatch.context() as patched:
        patched.setattr(erasing.storage, "delete_blob", fail_once)
        with pytest.raises(storage.StorageError):
            erase_tenant(bench.tenant.id)
    with transaction() as session:
        assert list_erasures(session) == []
    erase_tenant(bench.tenant.id)
    assert says_secret(bench.engine) == set()
    again = erase_tenant(bench.tenant.id)
    assert again.content["erased"]["batches"] == 2
    with transaction() as session:
        assert len(list_erasures(session)) == 2


def test_without_a_signing_key_nothing_is_erased(
    bench: Bench, settings_env: pytest.MonkeyPatch, set_before_start: Any, tmp_path: Path
) -> None:
    run(bench)
    set_before_start("SIGNING_KEY_FILE", tmp_path / "nowhere" / "key.pem")
    with pytest.raises(UserError, match="signing key"):
        erase_tenant(bench.tenant.id)
    assert "requests" in says_secret(bench.engine)


def test_what_was_erased_can_not_be_downloaded_nor_the_key_be_used(bench: Bench) -> None:
    batch_id = run(bench)
    with transaction() as session:
        _, before = create_key(session, bench.tenant.id, "before")
    erase_tenant(bench.tenant.id)
    with transaction() as session:
        with pytest.raises(InvalidKeyError):
            authenticate(session, before)
        _, after = create_key(session, bench.tenant.id, "after")
    with serve() as address:
        headers = {"Authorization": f"Bearer {after}"}
        batch = httpx2.get(f"{address}/v1/batches/{batch_id}", headers=headers).json()
        assert batch["request_counts"] == {"total": 5, "completed": 3, "failed": 2}
        for name in ("input_file_id", "output_file_id", "error_file_id"):
            assert httpx2.get(f"{address}/v1/files/{batch[name]}/content", headers=headers).status_code == 404
        assert httpx2.get(f"{address}/v1/files", headers=headers).json()["data"] == []


def test_an_upload_that_began_before_an_erasure_leaves_nothing_after_it(
    acme: Tenant, database: Engine, signing: None, tmp_path: Path
) -> None:
    def body() -> Iterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n{}\n'
        erase_tenant(acme.id)
        yield b"\r\n--b--\r\n"

    answer = acme.http.post("/v1/files", content=body(), headers={"content-type": "multipart/form-data; boundary=b"})
    assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key")
    assert sql(database, "SELECT count(*) FROM files") == [(0,)]
    assert not [path for path in (tmp_path / "blobs" / "uploads").rglob("*") if path.is_file()]


def test_a_quote_that_is_computed_meanwhile_quotes_no_line_afterwards(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(bench)
    ((quote_id,),) = sql(bench.engine, "UPDATE quotes SET errors = NULL RETURNING id")

    def compute_while_erased(*_: object) -> dict[str, Any]:
        erase_tenant(bench.tenant.id)
        return {"status": QuoteStatus.FAILED, "errors": [{"message": SECRET}]}

    monkeypatch.setattr(quoting, "_compute", compute_while_erased)
    quoting.compute(quote_id)

    assert says_secret(bench.engine) == set()
    assert sql(bench.engine, "SELECT status, errors FROM quotes") == [("failed", None)]


@pytest.mark.parametrize(
    "late",
    [
        "INSERT INTO idempotent_answers VALUES (:tenant_id, '', 'cancel_batch', 'k', 'x', :secret)",
        "INSERT INTO webhook_endpoints (id, tenant_id, name, url, event_types, secret_hint)"
        " VALUES ('w', :tenant_id, :secret, 'https://example.com', '{}', 'x')",
    ],
)
def test_what_a_call_leaves_meanwhile_is_erased_too(bench: Bench, monkeypatch: pytest.MonkeyPatch, late: str) -> None:
    run(bench)
    erase_batches = erasing._erase_batches
    calls = [late]

    def erase_before_a_call_ends(engine: Engine, tenant_id: str) -> None:
        erase_batches(engine, tenant_id)
        if calls:
            sql(engine, calls.pop(), tenant_id=tenant_id, secret=SECRET)

    monkeypatch.setattr(erasing, "_erase_batches", erase_before_a_call_ends)
    erase_tenant(bench.tenant.id)

    assert says_secret(bench.engine) == set()


def test_a_key_that_is_rotated_while_its_tenant_is_erased_does_not_outlive_it(bench: Bench) -> None:
    with ThreadPoolExecutor(1) as other:
        with transaction() as session:
            _, key = rotate_key(session, bench.tenant.api_key_id, timedelta(hours=1))
            erased = other.submit(erase_tenant, bench.tenant.id)
            wait_for(lambda: sql(bench.engine, "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'") != [])
        erased.result(timeout=60)
    with transaction() as session, pytest.raises(InvalidKeyError):
        authenticate(session, key)
