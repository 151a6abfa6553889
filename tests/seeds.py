"""Rows that tests start from: a tenant with a key, a priced model, and batches that intake and planning have left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from pipeline.ids import new_file_id, new_id
from pipeline.tables import (
    ApiKey,
    Batch,
    BatchStatus,
    File,
    OnInvalid,
    RateCard,
    Request,
    ServedModel,
    Slice,
    SliceStatus,
    Tenant,
)
from pipeline.tokenization import pack_token_ids

MODEL = "tiny"


def sql(database: Engine, statement: str, **params: object) -> list[tuple[Any, ...]]:
    """Run one statement in a transaction of its own; returns its rows."""
    with database.begin() as conn:
        result = conn.execute(text(statement), params)
        return [tuple(row) for row in result] if result.returns_rows else []


@dataclass(frozen=True)
class SeededTenant:
    id: str
    api_key_id: str


def seed_model(engine: Engine, name: str = MODEL, path: str = "/models/tiny") -> None:
    """A served model with a rate card whose amounts need all of their digits."""
    with Session(engine) as session, session.begin():
        session.add(ServedModel(name=name, path=path, context_length=2048))
        session.add(
            RateCard(
                model=name,
                currency="USD",
                input_price=Decimal("0.137"),
                cached_input_price=Decimal("0.061"),
                output_price=Decimal("0.411"),
                batch_discount=Decimal("0.333"),
            )
        )


def seed_tenant(engine: Engine, name: str = "acme") -> SeededTenant:
    tenant = SeededTenant(new_id("tenant"), new_id("key"))
    with Session(engine) as session, session.begin():
        session.add(Tenant(id=tenant.id, name=name))
        session.flush()
        session.add(
            ApiKey(id=tenant.api_key_id, tenant_id=tenant.id, name="k", short_id=new_id("s"), secret_hash=b"\0" * 32)
        )
    return tenant


def seed_batch(
    engine: Engine,
    tenant: SeededTenant,
    slices: Sequence[int],
    *,
    model: str = MODEL,
    window: timedelta = timedelta(hours=24),
    prompt: Sequence[int] = (5, 6, 7, 8),
    params: dict[str, Any] | None = None,
    endpoint: str = "/v1/chat/completions",
) -> str:
    """A batch in progress with pending slices of so many requests each; returns its id."""
    batch_id, file_id = new_id("batch"), new_file_id()
    expires_at = datetime.now(UTC) + window
    with Session(engine) as session, session.begin():
        session.add(
            File(
                id=file_id,
                tenant_id=tenant.id,
                filename="in.jsonl",
                purpose="batch",
                num_bytes=1,
                storage_key=f"files/{file_id}",
            )
        )
        session.flush()
        session.add(
            Batch(
                id=batch_id,
                tenant_id=tenant.id,
                api_key_id=tenant.api_key_id,
                input_file_id=file_id,
                endpoint=endpoint,
                completion_window="24h",
                on_invalid=OnInvalid.FAIL,
                status=BatchStatus.IN_PROGRESS,
                expires_at=expires_at,
                model=model,
                num_requests=sum(slices),
            )
        )
        session.flush()
        line = 0
        for position, num_requests in enumerate(slices):
            planned = Slice(
                batch_id=batch_id,
                tenant_id=tenant.id,
                model=model,
                position=position,
                deadline=expires_at,
                num_requests=num_requests,
                num_tokens=num_requests * 12,
                status=SliceStatus.PENDING,
                num_unfinished=num_requests,
            )
            session.add(planned)
            session.flush()
            rows = []
            for _ in range(num_requests):
                line += 1
                rows.append(
                    Request(
                        batch_id=batch_id,
                        slice_id=planned.id,
                        line=line,
                        custom_id=f"request-{line}",
                        prompt_token_ids=pack_token_ids(prompt),
                        num_prompt_tokens=len(prompt),
                        params=params or {"max_tokens": 8},
                    )
                )
            session.add_all(rows)
            session.flush()
    return batch_id
