"""Outcomes for requests that no group will answer: of batches that were cancelled or whose window has passed."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, Engine, text

from pipeline.jobs.finalizing import finalize
from pipeline.tables import OutcomeKind
from pipeline.tables.session import connection

#: Slices ended in one transaction, which keeps their rows locked.
_PAGE_SLICES: Final = 8

# A slice that a group is claiming at this moment is passed over: that group notices at its next heartbeat, and
# records the outcomes itself.
_LOCK_PENDING: Final = text("""
    SELECT id FROM slices WHERE batch_id = :batch_id AND status = 'pending'
    ORDER BY id LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
""")
_END_REQUESTS: Final = text("""
    WITH ended AS (
        UPDATE requests SET outcome = :outcome, error_code = :code, error_message = :message
        WHERE slice_id = ANY(:slice_ids) AND outcome IS NULL RETURNING id, batch_id, num_prompt_tokens
    ), forgotten AS (
        DELETE FROM partial_outputs p USING ended WHERE p.request_id = ended.id
    )
    SELECT batch_id, count(*) AS num_requests, sum(num_prompt_tokens)::bigint AS num_tokens
    FROM ended GROUP BY batch_id ORDER BY batch_id
""")
_END_SLICES: Final = text("""
    UPDATE slices SET status = 'done', num_unfinished = 0, lease_expires_at = NULL WHERE id = ANY(:slice_ids)
""")
_COUNT: Final = text("""
    UPDATE batches SET num_unsuccessful = num_unsuccessful + :num_requests,
                       num_released_tokens = num_released_tokens + :num_tokens
    WHERE id = :batch_id
""")


def end_slices(
    conn: Connection,
    slice_ids: list[int],
    outcome: OutcomeKind,
    error_code: str | None = None,
    error_message: str | None = None,
) -> int:
    """Give every request of these slices that has no outcome this one; returns how many that were.

    The caller has locked the slices' rows in this transaction, and finalizes their batches after it.
    """
    if not slice_ids:
        return 0
    ended = conn.execute(
        _END_REQUESTS,
        {"slice_ids": slice_ids, "outcome": outcome.value, "code": error_code, "message": error_message},
    ).all()
    conn.execute(_END_SLICES, {"slice_ids": slice_ids})
    for row in ended:
        conn.execute(_COUNT, row._asdict())
    return sum(row.num_requests for row in ended)


def end_waiting_requests(batch_id: str, outcome: OutcomeKind, engine: Engine | None = None) -> int:
    """End the pending slices of a batch, and close the batch if nothing else is at work on it.

    Returns the number of requests that got an outcome. Safe at any time: claimed slices are their group's.
    """
    num_ended = 0
    while True:
        with connection(engine) as conn:
            page = list(conn.scalars(_LOCK_PENDING, {"batch_id": batch_id, "limit": _PAGE_SLICES}))
            num_ended += end_slices(conn, page, outcome)
        if len(page) < _PAGE_SLICES:
            break
    finalize(batch_id, engine)
    return num_ended
