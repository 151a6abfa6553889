"""Limits of tenants that differ from those of the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from pipeline.errors import UserError
from pipeline.tables import QueueLimit, RateLimit
from pipeline.tenancy import audit_log

RATES: Final = ("requests_per_minute", "tokens_per_minute")
QUEUES: Final = ("enqueued_tokens", "enqueued_batches")

Limits = TypeVar("Limits", RateLimit, QueueLimit)


def set_rate_limits(
    session: Session, tenant_id: str, limits: Mapping[str, int | None], *, api_key_id: str | None = None
) -> RateLimit:
    """Of a tenant, or of one key of it; names are of `RATES`. None is what the settings say, 0 no limit.

    Raises UserError for a limit below 0.
    """
    row = {"tenant_id": tenant_id, "api_key_id": api_key_id or ""}
    return _set(session, RateLimit, row, limits, {"key": api_key_id})


def inherit_rate_limits(session: Session, tenant_id: str, *, old_key_id: str, new_key_id: str) -> None:
    """Give a key the limits of its own that the one has which it replaces."""
    if (old := session.get(RateLimit, (tenant_id, old_key_id))) is not None:
        limits = {name: getattr(old, name) for name in RATES}
        session.add(RateLimit(tenant_id=tenant_id, api_key_id=new_key_id, **limits))


def set_queue_limits(
    session: Session, tenant_id: str, limits: Mapping[str, int | None], *, model: str | None = None
) -> QueueLimit:
    """Of a tenant, or of one model of it; names are of `QUEUES`. None is what the settings say, 0 no limit.

    Raises UserError for a limit below 0.
    """
    row = {"tenant_id": tenant_id, "model": model or ""}
    return _set(session, QueueLimit, row, limits, {"model": model})


def list_limits(session: Session, tenant_id: str | None = None) -> tuple[Sequence[RateLimit], Sequence[QueueLimit]]:
    """Of one tenant or of all."""
    rates = select(RateLimit).order_by(RateLimit.tenant_id, RateLimit.api_key_id)
    queues = select(QueueLimit).order_by(QueueLimit.tenant_id, QueueLimit.model)
    if tenant_id is not None:
        rates, queues = rates.where(RateLimit.tenant_id == tenant_id), queues.where(QueueLimit.tenant_id == tenant_id)
    return session.execute(rates).scalars().all(), session.execute(queues).scalars().all()


def _set(
    session: Session,
    table: type[Limits],
    row: Mapping[str, str],
    limits: Mapping[str, int | None],
    of: Mapping[str, str | None],
) -> Limits:
    if wrong := [name for name, value in limits.items() if value is not None and not 0 <= value < 2**62]:
        raise UserError(f"{wrong[0]} is {limits[wrong[0]]}: give a number from 0 on; 0 is no limit.")
    made = session.execute(
        insert(table)
        .values(**row, **limits)
        .on_conflict_do_update(index_elements=list(row), set_=dict(limits))
        .returning(table),
        execution_options={"populate_existing": True},
    ).scalar_one()
    audit_log.record(session, act="limits.set", object=row["tenant_id"], details={**of, **limits})
    return made
