"""How much a tenant may have enqueued: batches that have not ended, and of each model tokens of prompts to answer.

Exact, by SQL. A batch is counted when it is submitted. Its tokens are when intake knows them: it then gets all of them,
or fails, as OpenAI's do; they are free again one by one, as its requests get their outcomes, and at the latest when it
ends. Whoever counts holds a lock of the tenant until what it has counted is committed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.orm import Session

from pipeline.errors import PipelineError
from pipeline.settings import get_settings
from pipeline.tables.session import connection

#: Of a tenant's advisory lock, beside the hash of its id.
_LOCK_CLASS: Final = 10

_OPEN: Final = "status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"
_LIMITS: Final = text("""
    SELECT model, enqueued_tokens, enqueued_batches FROM queue_limits
    WHERE tenant_id = :tenant_id AND model = ANY(:models)
""")
_NUM_BATCHES: Final = text(f"SELECT count(*) FROM batches WHERE tenant_id = :tenant_id AND {_OPEN}")  # noqa: S608
_OF_MODEL: Final = text(f"""
    SELECT count(*) AS num_batches, coalesce(sum(num_reserved_tokens - num_released_tokens), 0)::bigint AS num_tokens
    FROM batches WHERE tenant_id = :tenant_id AND model = :model AND id <> :batch_id AND {_OPEN}
""")  # noqa: S608 - a constant
_RESERVE: Final = text("""
    UPDATE batches SET num_reserved_tokens = :num_tokens, model = :model WHERE id = :batch_id AND status = 'validating'
""")


class QueueLimitError(PipelineError):
    """The tenant has as much enqueued as it may."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class _Limits:
    """0 is no limit."""

    tokens: int
    #: Of this model, or where no model is meant, of all.
    batches: int


def admit_batch(session: Session, tenant_id: str) -> None:
    """Before a batch is written, in its transaction. Raises QueueLimitError where the tenant has its number of them."""
    limit = _limits(session, tenant_id, None).batches
    if not limit:
        return
    _lock(session, tenant_id)
    # A statement of its own: it sees what was committed while the lock was waited for.
    if session.execute(_NUM_BATCHES, {"tenant_id": tenant_id}).scalar_one() >= limit:
        raise QueueLimitError(
            "batch_limit_exceeded",
            f"Enqueued batch limit reached. Limit: {limit:,} batches that have not ended. Send it again when some have "
            "ended, or cancel some.",
        )


def reserve_tokens(engine: Engine, batch_id: str, tenant_id: str, model: str, num_tokens: int) -> None:
    """Count the prompt tokens of a batch that is being prepared, in a transaction of its own; again is fine.

    They stay counted while the batch is open, whatever becomes of this process. Raises QueueLimitError.
    """
    with connection(engine) as conn:
        limits = _limits(conn, tenant_id, model)
        if limits.tokens or limits.batches:
            _lock(conn, tenant_id)
            of_model = {"tenant_id": tenant_id, "model": model, "batch_id": batch_id}
            enqueued = conn.execute(_OF_MODEL, of_model).one()
            if limits.batches and enqueued.num_batches >= limits.batches:
                raise QueueLimitError(
                    "batch_limit_exceeded",
                    f"Enqueued batch limit reached for {model}. Limit: {limits.batches:,} batches that have not ended. "
                    "Please try again once some in_progress batches have been completed.",
                )
            if limits.tokens and enqueued.num_tokens + num_tokens > limits.tokens:
                raise QueueLimitError(
                    "token_limit_exceeded",
                    f"Enqueued token limit reached for {model}. Limit: {limits.tokens:,} enqueued tokens, of which "
                    f"{enqueued.num_tokens:,} are in use; this batch has {num_tokens:,}. Please try again once some "
                    "in_progress batches have been completed.",
                )
        conn.execute(_RESERVE, {"batch_id": batch_id, "model": model, "num_tokens": num_tokens})


def _limits(session: Session | Connection, tenant_id: str, model: str | None) -> _Limits:
    settings = get_settings()
    rows = session.execute(_LIMITS, {"tenant_id": tenant_id, "models": ["", model or ""]})
    found = {row.model: row for row in rows}
    of_all, of_model = found.get(""), found.get(model) if model else None
    tokens = [row.enqueued_tokens for row in (of_model, of_all) if row is not None]
    tokens = [*(value for value in tokens if value is not None), settings.tenant_enqueued_tokens]
    if model is not None:
        return _Limits(tokens[0], (of_model.enqueued_batches or 0) if of_model is not None else 0)
    own = None if of_all is None else of_all.enqueued_batches
    return _Limits(tokens[0], settings.tenant_enqueued_batches if own is None else own)


def _lock(session: Session | Connection, tenant_id: str) -> None:
    session.execute(select(func.pg_advisory_xact_lock(_LOCK_CLASS, func.hashtext(tenant_id))))
