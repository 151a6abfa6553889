"""Planning: orders the requests of a batch by shared prefix and cuts them into slices.

The order is that of the token ids, so that prompts with a common beginning follow one another and the prefix cache
finds it. The sorting, and every row, stay in the database.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, text

from pipeline.jobs import outbox
from pipeline.jobs.intake_table import INTAKE_TABLE
from pipeline.settings import Settings
from pipeline.tables import Batch

#: The part of max_tokens that counts towards the size of a slice, over all choices of a request. Most answers end
#: long before max_tokens, which is the whole context where the client gave none: counted in full, a slice would be
#: one request, and a group that holds three slices would run three.
EXPECTED_ANSWER_TOKENS: Final = 512

#: A batch is cut into two slices for each group that could help, unless that makes slices of less than this.
_LEAST_SLICE_TOKENS: Final = 4_096

_ORDER: Final = text(f"""
    CREATE TEMPORARY TABLE planned ON COMMIT DROP AS
    SELECT line, row_number() OVER (ORDER BY prompt_token_ids, line) AS place, num_tokens,
           num_prompt_tokens + least(num_tokens - num_prompt_tokens, :answer_tokens) AS size
    FROM {INTAKE_TABLE}
""")  # noqa: S608 - a constant
_SIZES: Final = text("""
    SELECT coalesce(array_agg(size ORDER BY place), '{}') AS sizes,
           coalesce(array_agg(num_tokens ORDER BY place), '{}') AS num_tokens
    FROM planned
""")
_READY_GROUPS: Final = text("SELECT count(*) FROM groups WHERE model = :model AND state = 'ready'")
_INSERT_SLICES: Final = text("""
    INSERT INTO slices
        (batch_id, tenant_id, model, position, deadline, num_requests, num_unfinished, num_tokens, status)
    SELECT b.id, b.tenant_id, :model, cut.position, b.expires_at, cut.num_requests, cut.num_requests, cut.num_tokens,
           'pending'
    FROM batches b,
         unnest(CAST(:positions AS bigint[]), CAST(:num_requests AS bigint[]), CAST(:num_tokens AS bigint[]))
             AS cut (position, num_requests, num_tokens)
    WHERE b.id = :batch_id ORDER BY cut.position
""")
# Rows are numbered in the order in which they are selected, so that the order of ids is the planned one.
_INSERT_REQUESTS: Final = text(f"""
    INSERT INTO requests (batch_id, slice_id, line, custom_id, prompt_token_ids, num_prompt_tokens, params)
    SELECT :batch_id, s.id, i.line, i.custom_id, i.prompt_token_ids, i.num_prompt_tokens, i.params
    FROM planned p
    JOIN {INTAKE_TABLE} i ON i.line = p.line
    JOIN slices s ON s.batch_id = :batch_id
                 AND s.position = width_bucket(p.place, CAST(:first_places AS bigint[])) - 1
    ORDER BY p.place
""")  # noqa: S608 - a constant


@dataclass(frozen=True, slots=True)
class Cut:
    """One slice to be."""

    #: Of its first request in the planned order, from 0.
    first: int
    num_requests: int
    #: Prompt tokens and max_tokens: the most work that it can be.
    num_tokens: int


def plan(conn: Connection, batch: Batch, model: str, settings: Settings) -> int:
    """Turn the intake table into slices, requests and one ticket per slice; returns the number of slices.

    In the transaction of intake. The caller sets the batch's status, and calls `outbox.publish_soon` after the commit.
    """
    conn.execute(text("SET LOCAL work_mem = '64MB'"))  # most batches are sorted without a file
    conn.execute(_ORDER, {"answer_tokens": EXPECTED_ANSWER_TOKENS})
    conn.execute(text("ANALYZE planned"))
    sizes, num_tokens = conn.execute(_SIZES).one()
    num_groups = int(conn.scalar(_READY_GROUPS, {"model": model}) or 0)
    cuts = cut_slices(sizes, num_tokens, _slice_tokens(sum(sizes), num_groups, settings), settings.slice_requests)
    if not cuts:
        return 0
    conn.execute(
        _INSERT_SLICES,
        {
            "batch_id": batch.id,
            "model": model,
            "positions": list(range(len(cuts))),
            "num_requests": [cut.num_requests for cut in cuts],
            "num_tokens": [cut.num_tokens for cut in cuts],
        },
    )
    conn.execute(_INSERT_REQUESTS, {"batch_id": batch.id, "first_places": [cut.first + 1 for cut in cuts]})
    outbox.add_tickets(conn, model, len(cuts))
    return len(cuts)


def cut_slices(sizes: Sequence[int], num_tokens: Sequence[int], slice_tokens: int, slice_requests: int) -> list[Cut]:
    """Cut requests, given in planned order, so that no slice passes either limit unless it is a single request."""
    cuts: list[Cut] = []
    first = size = total = 0
    for place, request_size in enumerate(sizes):
        if place > first and (size + request_size > slice_tokens or place - first == slice_requests):
            cuts.append(Cut(first, place - first, total))
            first, size, total = place, 0, 0
        size += request_size
        total += num_tokens[place]
    if sizes:
        cuts.append(Cut(first, len(sizes) - first, total))
    return cuts


def _slice_tokens(total: int, num_groups: int, settings: Settings) -> int:
    """Small enough that every ready group gets two slices of this batch, which they then finish at about one time."""
    share = -(-total // (2 * max(1, num_groups)))
    return min(settings.slice_tokens, max(share, _LEAST_SLICE_TOKENS))
