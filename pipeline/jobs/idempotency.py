"""Idempotency keys: a submission that is sent again, since its answer was lost, makes no second batch.

As other APIs do it: the client names its submission by a key of its own choice. The same key with the same content is
the same batch, however many send it at once; with other content it is a mistake, and nothing is made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Engine, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from pipeline.errors import PipelineError
from pipeline.tables import IdempotencyKey
from pipeline.tables.session import connection

#: Keys are forgotten after so long; nobody tries a submission again for days.
KEPT: Final = timedelta(days=7)


class IdempotencyKeyReusedError(PipelineError):
    """The key stands for another submission."""


def claim_key(session: Session, tenant_id: str, key: str, content: Mapping[str, Any], batch_id: str) -> str:
    """The batch that this key stands for: `batch_id` where the key is new, else the one that was made first.

    Waits for whoever is just claiming the same key, and is new again if that one rolls back. Raises
    IdempotencyKeyReusedError where the content is not that of the first submission.
    """
    fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
    row = {"tenant_id": tenant_id, "key": key, "fingerprint": fingerprint, "batch_id": batch_id}
    if session.scalar(insert(IdempotencyKey).values(row).on_conflict_do_nothing().returning(IdempotencyKey.batch_id)):
        return batch_id
    first = session.execute(
        select(IdempotencyKey).where(IdempotencyKey.tenant_id == tenant_id, IdempotencyKey.key == key)
    ).scalar_one()
    if first.fingerprint != fingerprint:
        raise IdempotencyKeyReusedError(
            f"The Idempotency-Key was used for another submission, which made the batch {first.batch_id}. "
            "Use a new key for new content, or send the same content again."
        )
    return first.batch_id


def forget_old_keys(engine: Engine) -> int:
    with connection(engine) as conn:
        return conn.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < func.now() - KEPT)).rowcount
