"""What the console is measured against: batches of every kind with a million requests, made in SQL."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from sqlalchemy import Engine, text

from pipeline.billing.rollups import rebuild
from pipeline.storage import write_blob
from pipeline.tables.session import transaction
from pipeline.tenancy.keys import create_key
from pipeline.tenancy.tenants import ensure_tenant

#: Of the largest batch: as many as one can have by default.
LARGEST: Final = 50_000
#: Requests of a slice. Real ones have more; many slices are what queues find hard.
SLICE: Final = 100
#: Batches that failed at their lines, which have no requests, beside the others.
NUM_FAILED: Final = 20
#: Lines that are wrong in each of them.
NUM_ERRORS: Final = 2_000
NUM_TENANTS: Final = 10

_BATCHES: Final = """
    INSERT INTO batches (id, tenant_id, api_key_id, project_id, input_file_id, endpoint, completion_window, on_invalid,
                         status, service_class, created_at, expires_at, in_progress_at, finalizing_at, completed_at,
                         failed_at, cancelling_at, cancelled_at, model, output_file_id, error_file_id, num_requests)
    SELECT b.id, tenants.id, keys.id, 'proj_' || md5(tenants.id), 'file-in-' || b.n, '/v1/chat/completions', '24h',
           'fail', b.status, b.class, b.at, b.at + interval '24 hours' + CASE WHEN b.is_open THEN interval '20 days'
           ELSE interval '0' END, b.at + interval '1 minute', CASE WHEN NOT b.is_open THEN b.at + interval '50 min' END,
           CASE b.status WHEN 'completed' THEN b.at + interval '1 hour' END,
           CASE b.status WHEN 'failed' THEN b.at + interval '1 minute' END,
           CASE b.status WHEN 'cancelled' THEN b.at + interval '30 min' END,
           CASE b.status WHEN 'cancelled' THEN b.at + interval '31 min' END,
           CASE b.n % 3 WHEN 0 THEN 'large' ELSE 'tiny' END, 'file-out-' || b.n, 'file-err-' || b.n, b.size
    FROM (
        SELECT n, 'batch_' || md5(n::text) AS id,
               CASE WHEN n > {batches} THEN 0 WHEN n = 1 THEN {largest} ELSE {size} END AS size,
               CASE WHEN n > {batches} THEN 'failed' WHEN n % 20 = 1 THEN 'in_progress' WHEN n % 50 = 7 THEN 'cancelled'
                    ELSE 'completed' END AS status, n <= {batches} AND n % 20 = 1 AS is_open,
               CASE n % 7 WHEN 0 THEN 'priority' WHEN 1 THEN 'flex' ELSE 'standard' END AS class,
               now() - n * interval '14 minutes' AS at,
               CASE WHEN n % 9 = 4 THEN 1 + n / 9 % {others} ELSE 0 END AS owner
        FROM generate_series(1, {batches} + {failed}) n
    ) b JOIN (SELECT row_number() OVER (ORDER BY name) - 1 AS n, id FROM tenants) tenants ON tenants.n = b.owner
    JOIN LATERAL (SELECT id FROM api_keys WHERE tenant_id = tenants.id ORDER BY md5(id || b.n) LIMIT 1) keys ON true
"""
_FILES: Final = """
    INSERT INTO files (id, tenant_id, project_id, filename, purpose, num_bytes, created_at, storage_key)
    SELECT 'file-in-' || n, (SELECT id FROM tenants ORDER BY name LIMIT 1), NULL, 'requests-' || n || '.jsonl', 'batch',
           200000, now() - n * interval '14 minutes', 'uploads/file-in-' || n
    FROM generate_series(1, {batches} + {failed}) n
"""
_VIEWS: Final = """
    UPDATE files f SET tenant_id = b.tenant_id, project_id = b.project_id FROM batches b WHERE f.id = b.input_file_id;
    INSERT INTO files (id, tenant_id, project_id, filename, purpose, num_bytes, created_at, batch_id, view)
    SELECT v.id, b.tenant_id, b.project_id, 'batch_' || v.kind || '.jsonl', 'batch_output', 100000, b.created_at, b.id,
           v.kind
    FROM batches b, LATERAL (VALUES (b.output_file_id, 'output'), (b.error_file_id, 'error')) v (id, kind)
    WHERE b.num_requests > 0
"""
_SLICES: Final = """
    INSERT INTO slices (batch_id, tenant_id, service_class, model, position, deadline, num_requests, num_tokens,
                        num_prompt_tokens, num_answer_tokens, status, lease_epoch, lease_expires_at, group_id,
                        num_unfinished)
    SELECT b.id, b.tenant_id, b.service_class, b.model, p, b.expires_at, s.size, s.size * 100, s.size * 40, s.size * 60,
           s.status, (s.status <> 'pending')::int, CASE s.status WHEN 'claimed' THEN now() + interval '1 day' END,
           CASE WHEN s.status <> 'pending' THEN 'group-' || p % 4 || '@here' END,
           CASE s.status WHEN 'done' THEN 0 ELSE s.size END
    FROM batches b, generate_series(0, (b.num_requests - 1) / {slice}) p, LATERAL (
        SELECT least({slice}, b.num_requests - p * {slice}) AS size,
               CASE WHEN b.status <> 'in_progress' OR p * {slice} < b.num_requests / 2 - {slice} THEN 'done'
                    WHEN p * {slice} < b.num_requests / 2 THEN 'claimed' ELSE 'pending' END AS status
    ) s
"""
_ATTEMPTS: Final = """
    INSERT INTO attempts (slice_id, lease_epoch, batch_id, group_id, started_at, ended_at, "end", num_succeeded,
                          num_tokens)
    SELECT s.id, 1, s.batch_id, s.group_id, least(now(), b.created_at + s.position * interval '20 seconds'),
           CASE s.status WHEN 'done' THEN least(now(), b.created_at + (s.position + 2) * interval '20 seconds') END,
           CASE s.status WHEN 'done' THEN 'finished' END, s.num_requests - s.num_unfinished, s.num_requests * 90
    FROM slices s JOIN batches b ON b.id = s.batch_id WHERE s.status <> 'pending'
"""
_REQUESTS: Final = """
    INSERT INTO requests (batch_id, slice_id, line, custom_id, prompt_token_ids, num_prompt_tokens, params, outcome,
                          error_code, error_message)
    SELECT s.batch_id, s.id, s.position * {slice} + i, 'request-' || s.position * {slice} + i,
           decode(repeat('00000005', 40), 'hex'), 40, '{{"max_tokens": 64, "temperature": 0.7}}',
           CASE WHEN s.status <> 'done' THEN NULL WHEN i % 33 = 5 THEN 'failed'
                WHEN b.status = 'cancelled' AND s.position > 2 THEN 'cancelled' ELSE 'succeeded' END,
           CASE WHEN s.status <> 'done' THEN NULL WHEN i % 33 = 5 THEN 'context_length_exceeded'
                WHEN b.status = 'cancelled' AND s.position > 2 THEN 'batch_cancelled' END,
           CASE WHEN s.status = 'done' AND i % 33 = 5 THEN 'This prompt has 5000 tokens; the model takes 2048.'
                WHEN s.status = 'done' AND b.status = 'cancelled' AND s.position > 2 THEN 'Its batch was cancelled.' END
    FROM slices s JOIN batches b ON b.id = s.batch_id, generate_series(1, s.num_requests) i
"""
_RESULTS: Final = """
    INSERT INTO results (request_id, batch_id, body, num_line_bytes, slice_id, lease_epoch, group_id)
    SELECT r.id, r.batch_id, {body}, 600, r.slice_id, 1, 'group-0@here' FROM requests r WHERE r.outcome = 'succeeded'
"""
_EVENTS: Final = """
    INSERT INTO usage_events (request_id, meter, quantity, tenant_id, api_key_id, batch_id, project_id, service_class,
                              model, group_id, engine_ms, occurred_at)
    SELECT r.id, m.meter, m.quantity, b.tenant_id, b.api_key_id, b.id, b.project_id, b.service_class, b.model,
           'group-0@here', CASE m.meter WHEN 'output' THEN 30 ELSE 0 END, b.created_at + interval '20 minutes'
    FROM batches b JOIN requests r ON r.batch_id = b.id AND r.outcome = 'succeeded',
         (VALUES ('input_uncached', 30), ('input_cached', 10), ('output', 50)) AS m (meter, quantity)
"""
_LINES: Final = """
    INSERT INTO rated_lines (request_id, meter, rate_card_id, ledger_transaction_id, quantity, unit_price, amount,
                             currency)
    SELECT request_id, meter, 1, 1, quantity, 0.137, quantity * 0.137 * 0.000001 * 0.667, 'USD' FROM usage_events
"""
_COUNTS: Final = """
    UPDATE batches b
    SET num_succeeded = c.good, num_unsuccessful = c.bad, num_prompt_tokens = 40 * c.good,
        num_cached_tokens = 10 * c.good, num_completion_tokens = 50 * c.good
    FROM (
        SELECT batch_id, count(*) FILTER (WHERE outcome = 'succeeded') AS good,
               count(*) FILTER (WHERE outcome <> 'succeeded') AS bad FROM requests GROUP BY batch_id
    ) c WHERE c.batch_id = b.id
"""
_REST: Final = """
    INSERT INTO batch_errors (batch_id, line, custom_id, code, param, message)
    SELECT b.id, line, 'request-' || line, 'invalid_parameter', 'body.temperature', 'temperature is 7; give 0 to 2.'
    FROM batches b, generate_series(1, {errors}) line WHERE b.status = 'failed';
    INSERT INTO groups (id, model, state, pid, rank_pids, info)
    SELECT 'group-' || n || '@here', CASE n % 3 WHEN 0 THEN 'large' ELSE 'tiny' END, 'ready', 1, '[2, 3]',
           '{{"engine": "native", "tp": 2, "device": "cuda", "dtype": "bfloat16", "kv_tokens": 100000,
              "kv_tokens_used": 71000, "running": 80, "waiting": 3, "restarts": 1}}'
    FROM generate_series(0, 7) n;
    INSERT INTO budgets (id, tenant_id, currency, period, amount, is_hard, is_prepaid)
    SELECT 'budget_' || id, id, 'USD', 'month', 100, true, false FROM tenants;
    INSERT INTO fair_shares (model, service_class, tenant_id, served)
    SELECT m.name, c.class, t.id, length(t.name) * 100000
    FROM served_models m, (VALUES ('priority'), ('standard'), ('flex')) c (class), tenants t;
    UPDATE batches SET pause_reason = 'budget_' || tenant_id, pause_needs = 1, paused_at = now()
    WHERE status = 'in_progress' AND right(id, 1) < '4'
"""


@dataclass(frozen=True)
class Filled:
    """Who looks at it, and at what."""

    operator_key: str
    tenant_key: str
    num_batches: int
    num_requests: int
    largest: str
    running: str
    completed: str
    failed: str


def fill(engine: Engine, num_batches: int, num_requests: int) -> Filled:
    """Fill an empty database. Eight of nine batches are of one tenant; the largest batch is still running."""
    with transaction(engine) as session:
        owners = [ensure_tenant(session, f"tenant {n:02}") for n in range(NUM_TENANTS)]
        keys = {owner.id: [create_key(session, owner.id, f"key {n}")[1] for n in range(5)] for owner in owners}
        _, operator_key = create_key(session, owners[0].id, "operator", is_operator=True)
    values = {
        "batches": num_batches,
        "largest": LARGEST,
        "size": -(-(num_requests - LARGEST) // (num_batches - 1)),
        "failed": NUM_FAILED,
        "errors": NUM_ERRORS,
        "others": NUM_TENANTS - 1,
        "slice": SLICE,
        "body": _answer_sql(),
    }
    url = engine.url.render_as_string(hide_password=False).replace("postgresql+psycopg", "postgresql")
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            "INSERT INTO served_models (name, path, context_length) VALUES ('tiny', '/', 2048), ('large', '/', 2048)"
        )
        conn.execute(
            "INSERT INTO rate_cards (model, currency, input_price, cached_input_price, output_price, batch_discount)"
            " VALUES ('tiny', 'USD', 0.137, 0.061, 0.411, 0.333), ('large', 'USD', 1.37, 0.61, 4.11, 0.333)"
        )
        for statement in (
            _FILES,
            _BATCHES,
            _VIEWS,
            _SLICES,
            _ATTEMPTS,
            _REQUESTS,
            _RESULTS,
            _EVENTS,
            _LINES,
            _COUNTS,
            _REST,
        ):
            conn.execute(statement.format(**values))
        conn.execute("VACUUM ANALYZE")
    rebuild(engine)
    with engine.connect() as conn:
        ids = [_batch_id(n) for n in (1, 21, 2, num_batches + 1)]
        for batch_id in ids:
            _write_input(
                conn.execute(
                    text("SELECT input_file_id, num_requests FROM batches WHERE id = :id"), {"id": batch_id}
                ).one()
            )
        total = int(conn.scalar(text("SELECT count(*) FROM requests")) or 0)
    return Filled(operator_key, keys[owners[0].id][0], num_batches + NUM_FAILED, total, *ids)


def _batch_id(number: int) -> str:
    return f"batch_{hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()}"


def _answer_sql() -> str:
    body: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "tiny",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "An answer. " * 25}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 40, "completion_tokens": 50, "total_tokens": 90},
    }
    return f"'{json.dumps(body)}'"


def _write_input(row: Any) -> None:
    def lines() -> Iterator[bytes]:
        for line in range(1, (row.num_requests or NUM_ERRORS) + 1):
            messages = [{"role": "user", "content": f"Question {line}: " + "why " * 20}]
            request = {
                "custom_id": f"request-{line}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {"model": "tiny", "messages": messages, "max_tokens": 64},
            }
            yield json.dumps(request).encode() + b"\n"

    write_blob(f"uploads/{row.input_file_id}", lines())
