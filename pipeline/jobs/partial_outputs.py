"""Partial outputs: what running requests have come to, kept in SQL so that little of it is lost with a group.

A group adds parts as its engine generates; whoever claims the slice next goes on from them. They are fenced as outcomes
are: under the slice's lock, and by its lease epoch. What is in a part is the group's own affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, text

from pipeline.jobs.claiming import ClaimedSlice


@dataclass(frozen=True, slots=True)
class OutputPart:
    """What was generated for a request after its first `position` tokens, over all choices."""

    request_id: int
    claimed: ClaimedSlice
    position: int
    num_tokens: int
    data: bytes


# A part that is there already was saved by a transaction whose commit was in doubt; it may have grown since.
_SAVE: Final = text("""
    WITH mine AS (
        SELECT s.id
        FROM slices s JOIN unnest(CAST(:slice_ids AS bigint[]), CAST(:epochs AS bigint[])) AS held (id, epoch)
            ON s.id = held.id AND s.lease_epoch = held.epoch
        WHERE s.group_id = :group_id AND s.status = 'claimed' ORDER BY s.id FOR NO KEY UPDATE OF s
    ), saved AS (
        INSERT INTO partial_outputs (request_id, position, num_tokens, data)
        SELECT p.request_id, p.position, p.num_tokens, p.data
        FROM unnest(CAST(:of_slices AS bigint[]), CAST(:request_ids AS bigint[]), CAST(:positions AS bigint[]),
                    CAST(:num_tokens AS bigint[]), CAST(:data AS bytea[]))
            AS p (slice_id, request_id, position, num_tokens, data)
        JOIN mine ON mine.id = p.slice_id
        JOIN requests r ON r.id = p.request_id AND r.slice_id = p.slice_id AND r.outcome IS NULL
        ON CONFLICT (request_id, position) DO UPDATE SET num_tokens = EXCLUDED.num_tokens, data = EXCLUDED.data
    )
    SELECT id FROM mine
""")


def save_parts(conn: Connection, parts: Sequence[OutputPart]) -> frozenset[int]:
    """Save what one group has generated; returns the slices whose lease was lost, of which nothing is saved."""
    if not parts:
        return frozenset()
    slices = {part.claimed.id: part.claimed for part in parts}
    mine = conn.scalars(
        _SAVE,
        {
            "group_id": parts[0].claimed.group_id,
            "slice_ids": list(slices),
            "epochs": [claimed.lease_epoch for claimed in slices.values()],
            "of_slices": [part.claimed.id for part in parts],
            "request_ids": [part.request_id for part in parts],
            "positions": [part.position for part in parts],
            "num_tokens": [part.num_tokens for part in parts],
            "data": [part.data for part in parts],
        },
    )
    return frozenset(slices.keys() - set(mine))
