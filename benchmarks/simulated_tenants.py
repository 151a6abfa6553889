"""Tenants and batches as intake and planning leave them, for simulations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from pipeline.billing.rate_cards import add_rate_card
from pipeline.ids import new_file_id, new_id
from pipeline.jobs.claiming import ClaimedSlice
from pipeline.jobs.fairness import lift, set_weight
from pipeline.jobs.planning import Order, cut_order
from pipeline.settings import get_settings
from pipeline.tables import ServedModel, ServiceClass
from pipeline.tenancy.keys import create_key
from pipeline.tenancy.tenants import ensure_tenant
from pipeline.tokenization import pack_token_ids

MODEL: Final = "simulated"


@dataclass(frozen=True, slots=True)
class SimulatedTenant:
    id: str
    api_key_id: str


def add_model(session: Session, num_groups: int) -> None:
    """A model with a price, and so many groups that planning counts with."""
    session.add(ServedModel(name=MODEL, path="/models/simulated", context_length=8_192))
    session.flush()
    add_rate_card(
        session,
        MODEL,
        currency="USD",
        input_price=Decimal("0.1"),
        cached_input_price=Decimal("0.05"),
        output_price=Decimal("0.4"),
        batch_discount=Decimal(0),
    )
    for number in range(num_groups):
        session.execute(
            text(
                "INSERT INTO groups (id, model, state, pid, rank_pids, info)"
                " VALUES (:id, :model, 'ready', 1, '[]', '{}')"
            ),
            {"id": f"group-{number}@simulated", "model": MODEL},
        )


def add_tenant(session: Session, name: str, weight: int = 1) -> SimulatedTenant:
    tenant = ensure_tenant(session, name)
    key, _ = create_key(session, tenant.id, "key")
    set_weight(session, tenant.id, Decimal(weight))
    return SimulatedTenant(tenant.id, key.id)


_BATCH: Final = text("""
    WITH file AS (
        INSERT INTO files (id, tenant_id, filename, purpose, num_bytes, storage_key)
        VALUES (:file_id, :tenant_id, 'in.jsonl', 'batch', 1, :file_id)
    )
    INSERT INTO batches (id, tenant_id, api_key_id, input_file_id, endpoint, completion_window, on_invalid, status,
                         service_class, expires_at, in_progress_at, model, num_requests)
    VALUES (:id, :tenant_id, :api_key_id, :file_id, '/v1/completions', '24h', 'fail', 'in_progress',
            :service_class, now() + interval '24 h', now(), :model, :num_requests)
""")
_SLICES: Final = text("""
    INSERT INTO slices (batch_id, tenant_id, service_class, model, position, deadline, num_requests, num_unfinished,
                        num_tokens, num_prompt_tokens, num_answer_tokens, status)
    SELECT b.id, b.tenant_id, b.service_class, b.model, place - 1, b.expires_at, size, size,
           size * (:prompt + :answer), size * :prompt, size * :answer, 'pending'
    FROM batches b, unnest(CAST(:sizes AS bigint[])) WITH ORDINALITY AS cut (size, place)
    WHERE b.id = :id ORDER BY place
""")
_REQUESTS: Final = text("""
    INSERT INTO requests (batch_id, slice_id, line, custom_id, prompt_token_ids, num_prompt_tokens, params)
    SELECT s.batch_id, s.id, row_number() OVER (ORDER BY s.position, n),
           'request-' || row_number() OVER (ORDER BY s.position, n), :prompt_token_ids, :prompt,
           jsonb_build_object('max_tokens', CAST(:answer AS bigint))
    FROM slices s CROSS JOIN LATERAL generate_series(1, s.num_requests) n WHERE s.batch_id = :id
    ORDER BY s.position, n
""")


def add_batch(
    conn: Connection,
    tenant: SimulatedTenant,
    *,
    sizes: Sequence[int],
    num_prompt_tokens: int,
    max_tokens: int,
    service_class: ServiceClass = ServiceClass.STANDARD,
) -> str:
    """A batch of slices of so many requests each; its tenant comes in as planning lets it."""
    batch_id = new_id("batch")
    values = {
        "id": batch_id,
        "tenant_id": tenant.id,
        "api_key_id": tenant.api_key_id,
        "file_id": new_file_id(),
        "model": MODEL,
        "service_class": service_class.value,
        "num_requests": sum(sizes),
        "sizes": list(sizes),
        "prompt": num_prompt_tokens,
        "answer": max_tokens,
        "prompt_token_ids": pack_token_ids([7] * num_prompt_tokens),
    }
    for statement in (_BATCH, _SLICES, _REQUESTS):
        conn.execute(statement, values)
    lift(conn, batch_id, MODEL)
    return batch_id


def planned_sizes(conn: Connection, num_requests: int, num_prompt_tokens: int, max_tokens: int) -> list[int]:
    """Requests per slice, as planning cuts a batch of requests that share nothing."""
    order = Order(
        lines=list(range(1, num_requests + 1)),
        num_tokens=[num_prompt_tokens + max_tokens] * num_requests,
        num_prompt_tokens=[num_prompt_tokens] * num_requests,
        sizes=[num_prompt_tokens + max_tokens] * num_requests,
        shared=[0] * num_requests,
    )
    return [cut.num_requests for cut in cut_order(conn, order, MODEL, get_settings())]


# What claiming was before there were shares, but for the lock: whoever came first is served first.
_FIRST_IN: Final = text("""
    WITH best AS (
        SELECT s.id, b.api_key_id, b.endpoint FROM slices s JOIN batches b ON b.id = s.batch_id
        WHERE s.model = :model AND s.status = 'pending' AND b.status = 'in_progress'
        ORDER BY s.id LIMIT 1 FOR NO KEY UPDATE OF s SKIP LOCKED
    ), claimed AS (
        UPDATE slices s SET status = 'claimed', lease_epoch = lease_epoch + 1, group_id = :group_id,
                            lease_expires_at = clock_timestamp() + interval '1 day'
        FROM best WHERE s.id = best.id
        RETURNING s.id, s.lease_epoch, s.batch_id, s.position, s.deadline, s.tenant_id, best.api_key_id, best.endpoint
    ), attempt AS (
        INSERT INTO attempts (slice_id, lease_epoch, batch_id, group_id)
        SELECT id, lease_epoch, batch_id, :group_id FROM claimed
    )
    SELECT * FROM claimed
""")


def claim_first_in(conn: Connection, group_id: str, _last: ClaimedSlice | None) -> ClaimedSlice | None:
    """The peer: first in, first out."""
    row = conn.execute(_FIRST_IN, {"model": MODEL, "group_id": group_id}).one_or_none()
    return None if row is None else ClaimedSlice(group_id=group_id, model=MODEL, **row._asdict())
