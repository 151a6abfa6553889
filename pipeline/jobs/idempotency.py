"""Idempotency keys: a call that is sent again, since its answer was lost, does nothing twice.

As other APIs do it: the client names its call by a key of its own choice. The same key with the same content is the
same batch, or has the same answer, however many send it at once; with other content it is a mistake, and nothing is
made. A key is one of its tenant, of the project of the API key that called, and of the operation. What a call has done
and its answer are written in one transaction, so that there is no moment at which one is there without the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

from pydantic import BaseModel
from sqlalchemy import Engine, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from pipeline.errors import PipelineError
from pipeline.tables import IdempotencyKey, IdempotentAnswer
from pipeline.tables.session import connection

Answer = TypeVar("Answer", bound=BaseModel)

#: Keys are forgotten after so long; nobody tries a submission again for days.
KEPT: Final = timedelta(days=7)

#: How often a key that is gone again whenever it is looked at is claimed.
_MAX_CLAIMS: Final = 3


class IdempotencyKeyReusedError(PipelineError):
    """The key stands for another submission."""


class CallInProgressError(PipelineError):
    """Another call with the same Idempotency-Key is being answered at this moment. Send it again soon."""


@dataclass(frozen=True, kw_only=True)
class KeyedCall:
    """A call that its client has named."""

    tenant_id: str
    #: None: of a key of the whole tenant.
    project_id: str | None
    #: Name of the operation.
    route: str
    key: str
    #: What was sent, as JSON; of a file its hash.
    content: Mapping[str, Any]


def answer_once(session: Session, call: KeyedCall | None, make: Callable[[], Answer], kind: type[Answer]) -> Answer:
    """`make()`, in the caller's transaction, or what an earlier call of this name was answered; None has no name.

    What `make` raises leaves the name free. Raises CallInProgressError, IdempotencyKeyReusedError.
    """
    if call is None:
        return make()
    name = _name_of(call)
    lock = int.from_bytes(_fingerprint(name)[:8], signed=True)
    # Let go at the end of the transaction, whatever ends it: no name stays taken by a process that has died.
    if not session.scalar(select(func.pg_try_advisory_xact_lock(lock))):
        raise CallInProgressError
    if (first := first_answer(session, call, kind)) is not None:
        return first
    answer = make()
    session.add(IdempotentAnswer(**name, fingerprint=_fingerprint(call.content), answer=answer.model_dump_json()))
    session.flush()
    return answer


def first_answer(session: Session, call: KeyedCall | None, kind: type[Answer]) -> Answer | None:
    """What an earlier call of this name was answered, if there was one.

    For a call that takes long before it comes to `answer_once`. Raises IdempotencyKeyReusedError.
    """
    if call is None or (first := session.get(IdempotentAnswer, _name_of(call))) is None:
        return None
    if first.fingerprint != _fingerprint(call.content):
        raise IdempotencyKeyReusedError(
            "The Idempotency-Key was used for another call. Use a new key for new content, or send the same content "
            "again."
        )
    return kind.model_validate_json(first.answer)


def claim_key(
    session: Session, tenant_id: str, project_id: str | None, key: str, content: Mapping[str, Any], batch_id: str
) -> str:
    """The batch that this key stands for: `batch_id` where the key is new, else the one that was made first.

    Waits for whoever is just claiming the same key, and is new again if that one rolls back. Raises
    IdempotencyKeyReusedError where the content is not that of the first submission, CallInProgressError.
    """
    fingerprint = _fingerprint(content)
    name = {"tenant_id": tenant_id, "project_id": project_id or "", "key": key}
    row = {**name, "fingerprint": fingerprint, "batch_id": batch_id}
    claim = insert(IdempotencyKey).values(row).on_conflict_do_nothing().returning(IdempotencyKey.batch_id)
    first = None
    for _ in range(_MAX_CLAIMS):
        if session.scalar(claim):
            return batch_id
        if (first := session.get(IdempotencyKey, name)) is not None:
            break
        # Between the two it was forgotten, as too old: it is new again.
    if first is None:
        raise CallInProgressError
    if first.fingerprint != fingerprint:
        raise IdempotencyKeyReusedError(
            f"The Idempotency-Key was used for another submission, which made the batch {first.batch_id}. "
            "Use a new key for new content, or send the same content again."
        )
    return first.batch_id


def forget_old_keys(engine: Engine) -> int:
    with connection(engine) as conn:
        return sum(
            conn.execute(delete(table).where(table.created_at < func.now() - KEPT)).rowcount
            for table in (IdempotencyKey, IdempotentAnswer)
        )


def _name_of(call: KeyedCall) -> dict[str, str]:
    return {
        "tenant_id": call.tenant_id,
        "project_id": call.project_id or "",
        "route": call.route,
        "key": call.key,
    }


def _fingerprint(content: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
