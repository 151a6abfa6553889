"""What a key that was revoked while its call waited leaves: nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from running_gateways import Tenant, error_of, wait_for
from seeds import SeededTenant, seed_batch, seed_model, sql
from sqlalchemy import Engine

from pipeline.settings import PREFIX, get_settings

#: Calls, of POST unless they say so; the table that each waits for, and what must be as before.
CALLS = {
    "files": ("files", "SELECT count(*) FROM files"),
    "DELETE files/{unused}": ("files", "SELECT count(*) FROM files WHERE deleted_at IS NULL"),
    "batches": ("files", "SELECT count(*) FROM batches"),
    "batches/quote": ("files", "SELECT count(*) FROM quotes"),
    "batches/{batch}/cancel": ("batches", "SELECT status FROM batches ORDER BY id"),
    "batches/{batch}/pause": ("batches", "SELECT pause_reason FROM batches ORDER BY id"),
    "batches/{paused}/resume": ("batches", "SELECT pause_reason FROM batches ORDER BY id"),
    "batches/{cancelled}/retry": ("batches", "SELECT count(*) FROM batches"),
    "webhook_endpoints": ("webhook_endpoints", "SELECT count(*) FROM webhook_endpoints"),
    "webhook_endpoints/{hook}": ("webhook_endpoints", "SELECT name FROM webhook_endpoints"),
    "webhook_endpoints/{hook}/rotate_secret": (
        "webhook_endpoints",
        "SELECT secret_generation FROM webhook_endpoints",
    ),
    "DELETE webhook_endpoints/{hook}": ("webhook_endpoints", "SELECT count(*) FROM webhook_endpoints"),
}
BODIES: dict[str, dict[str, Any]] = {
    "batches": {"input_file_id": "{file}", "endpoint": "/v1/completions", "completion_window": "24h"},
    "batches/quote": {"input_file_id": "{file}", "endpoint": "/v1/completions"},
    "webhook_endpoints": {"name": "two", "url": "https://example.com/", "event_types": ["batch.completed"]},
    "webhook_endpoints/{hook}": {"name": "another"},
}


@pytest.fixture
def things(acme: Tenant, database: Engine, settings_env: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """What calls are about, by the names that their paths and bodies have for it."""
    settings_env.setenv(f"{PREFIX}SIGNING_KEY_FILE", str(tmp_path / "signing_key.pem"))
    get_settings.cache_clear()
    seed_model(database)
    made = {
        name: acme.client.files.create(file=("in.jsonl", b"{}\n"), purpose="batch").id for name in ("file", "unused")
    }
    for name in ("batch", "paused"):
        body = {"input_file_id": made["file"], "endpoint": "/v1/completions", "completion_window": "24h"}
        made[name] = acme.http.post("/v1/batches", json=body).json()["id"]
    acme.http.post(f"/v1/batches/{made['paused']}/pause")
    [(key_id,)] = sql(database, "SELECT id FROM api_keys")
    made["cancelled"] = seed_batch(database, SeededTenant(acme.id, key_id), [1])
    sql(database, "UPDATE requests SET outcome = 'cancelled'")
    ended = "UPDATE batches SET status = 'cancelled', input_file_id = :file WHERE id = :cancelled"
    sql(database, ended, file=made["file"], cancelled=made["cancelled"])
    hook = {"name": "one", "url": "https://example.com/", "event_types": ["batch.completed"]}
    made["hook"] = acme.http.post("/v1/webhook_endpoints", json=hook).json()["id"]
    return made


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_waits_while_its_key_is_revoked_leaves_nothing(
    call: str, acme: Tenant, things: dict[str, str], database: Engine
) -> None:
    table, kept = CALLS[call]
    before = sql(database, kept)
    body = {
        name: value.format(**things) if isinstance(value, str) else value
        for name, value in BODIES.get(call, {}).items()
    }
    options: dict[str, Any] = {"json": body} if body else {}
    if call == "files":
        options = {"files": {"file": ("in.jsonl", b"{}\n")}, "data": {"purpose": "batch"}}
    method, _, path = call.rpartition(" ")
    with ThreadPoolExecutor(1) as pool:
        with database.begin() as conn:
            conn.exec_driver_sql(f"LOCK TABLE {table}")
            answer = pool.submit(acme.http.request, method or "POST", f"/v1/{path.format(**things)}", **options)
            wait_for(lambda: bool(sql(database, "SELECT FROM pg_locks WHERE NOT granted")))
            sql(database, "UPDATE api_keys SET revoked_at = now()")
        response = answer.result()

    assert (response.status_code, error_of(response)["code"]) == (401, "invalid_api_key")
    assert sql(database, kept) == before
    sql(database, "UPDATE api_keys SET revoked_at = NULL")
    assert acme.client.files.content(things["unused"]).read() == b"{}\n"
