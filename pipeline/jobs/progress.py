"""How far batches are: what a client who watches them is shown, read for many at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from sqlalchemy import Connection, text

from pipeline.billing.cards_in_effect import find_rates_of_batches
from pipeline.billing.rating import TokenUsage, expected_cost
from pipeline.tables import BatchStatus
from pipeline.tables.batches import PAUSABLE

ENDED: Final = frozenset({BatchStatus.COMPLETED, BatchStatus.FAILED, BatchStatus.EXPIRED, BatchStatus.CANCELLED})

_READ: Final = text("""
    SELECT id, status, num_requests, num_skipped, num_succeeded, num_unsuccessful, num_prompt_tokens,
           num_cached_tokens, num_completion_tokens, pause_reason, pause_note
    FROM batches WHERE id = ANY(:batch_ids)
""")
_OVER: Final = text("""
    SELECT id FROM api_keys WHERE id = ANY(:key_ids) AND (revoked_at IS NOT NULL OR expires_at <= now())
""")


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """A batch at one moment."""

    batch_id: str
    status: BatchStatus
    #: Lines of the input file; 0 until it has been read.
    num_requests: int
    num_succeeded: int
    #: Failed, cancelled, expired or skipped.
    num_unsuccessful: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_completion_tokens: int
    #: None where nothing prices its model.
    cost: Decimal | None
    currency: str | None
    pause_reason: str | None
    pause_note: str | None

    @property
    def num_finished(self) -> int:
        return self.num_succeeded + self.num_unsuccessful

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + self.num_completion_tokens

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED


def read_progress(conn: Connection, batch_ids: Collection[str]) -> Mapping[str, BatchProgress]:
    """By batch, without those that are not there. The cost is that of the tokens so far, at the prices of now."""
    ids = list(batch_ids)
    rates = find_rates_of_batches(conn, ids)
    found = {}
    for row in conn.execute(_READ, {"batch_ids": ids}):
        status, priced = BatchStatus(row.status), rates.get(row.id)
        usage = TokenUsage(row.num_prompt_tokens, row.num_cached_tokens, row.num_completion_tokens)
        is_paused = status in PAUSABLE
        found[row.id] = BatchProgress(
            batch_id=row.id,
            status=status,
            num_requests=row.num_requests + row.num_skipped,
            num_succeeded=row.num_succeeded,
            num_unsuccessful=row.num_unsuccessful + row.num_skipped,
            num_prompt_tokens=row.num_prompt_tokens,
            num_cached_tokens=row.num_cached_tokens,
            num_completion_tokens=row.num_completion_tokens,
            cost=None if priced is None else expected_cost(priced, usage),
            currency=None if priced is None else priced.currency,
            pause_reason=row.pause_reason if is_paused else None,
            pause_note=row.pause_note if is_paused else None,
        )
    return found


def keys_that_are_over(conn: Connection, key_ids: Collection[str]) -> frozenset[str]:
    """Those of these keys that were revoked or have expired."""
    return frozenset(conn.scalars(_OVER, {"key_ids": list(key_ids)}))
