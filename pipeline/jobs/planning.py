"""Planning: orders the requests of a batch by shared prefix and cuts them into slices.

The order is that of the token ids, so that prompts with a common beginning follow one another and the prefix cache
finds it. Slices of one batch may run in different groups, and what is common over a cut is then computed twice: so a
slice ends, within its last quarter, where neighbours have the least in common. That makes at most a third more slices,
and keeps a family of prompts whole that need not be split. The sorting, and every row, stay in the database; the
beginnings of prompts pass by in a stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import Connection, text

from pipeline.jobs import outbox
from pipeline.jobs.fairness import lift
from pipeline.jobs.intake_table import INTAKE_TABLE
from pipeline.settings import Settings
from pipeline.tables import Batch

#: The part of max_tokens that counts towards the size of a slice, over all choices of a request. Most answers end
#: long before max_tokens, which is the whole context where the client gave none: counted in full, a slice would be
#: one request, and a group that holds three slices would run three.
EXPECTED_ANSWER_TOKENS: Final = 512

#: A batch is cut into two slices for each group that could help, unless that makes slices of less than this.
_LEAST_SLICE_TOKENS: Final = 4_096

#: A common beginning counts in whole pieces of so many tokens: a cache of blocks finds no less.
_SHARING_TOKENS: Final = 16

#: As far as beginnings are compared, in tokens: of families that have this much in common each is worth keeping whole.
_COMPARED_TOKENS: Final = 1_024
_BYTES_PER_TOKEN: Final = 4

#: Beginnings of the stream that are in memory at once, in tokens, if each has as many as are compared.
_STREAM_TOKENS: Final = 1_024_000

_IN_ORDER: Final = text(f"""
    SELECT line, num_tokens, num_prompt_tokens,
           num_prompt_tokens + least(num_tokens - num_prompt_tokens, :answer_tokens) AS size,
           substr(prompt_token_ids, 1, :num_bytes) AS beginning
    FROM {INTAKE_TABLE} ORDER BY prompt_token_ids, line
""")  # noqa: S608 - a constant
_READY_GROUPS: Final = text("SELECT count(*) FROM groups WHERE model = :model AND state = 'ready'")
_INSERT_SLICES: Final = text("""
    INSERT INTO slices
        (batch_id, tenant_id, service_class, model, position, deadline, num_requests, num_unfinished, num_tokens,
         num_prompt_tokens, num_shared_tokens, num_answer_tokens, status)
    SELECT b.id, b.tenant_id, b.service_class, :model, cut.position, b.expires_at, cut.num_requests,
           cut.num_requests, cut.num_tokens, cut.num_prompt_tokens, cut.num_shared_tokens, cut.num_answer_tokens,
           'pending'
    FROM batches b,
         unnest(CAST(:positions AS bigint[]), CAST(:num_requests AS bigint[]), CAST(:num_tokens AS bigint[]),
                CAST(:num_prompt_tokens AS bigint[]), CAST(:num_shared_tokens AS bigint[]),
                CAST(:num_answer_tokens AS bigint[]))
             AS cut (position, num_requests, num_tokens, num_prompt_tokens, num_shared_tokens, num_answer_tokens)
    WHERE b.id = :batch_id ORDER BY cut.position
""")
# Rows are numbered in the order in which they are selected, so that the order of ids is the planned one.
_INSERT_REQUESTS: Final = text(f"""
    INSERT INTO requests (batch_id, slice_id, line, custom_id, prompt_token_ids, num_prompt_tokens, params)
    SELECT :batch_id, s.id, i.line, i.custom_id, i.prompt_token_ids, i.num_prompt_tokens, i.params
    FROM unnest(CAST(:lines AS bigint[])) WITH ORDINALITY AS p (line, place)
    JOIN {INTAKE_TABLE} i ON i.line = p.line
    JOIN slices s ON s.batch_id = :batch_id
                 AND s.position = width_bucket(p.place, CAST(:first_places AS bigint[])) - 1
    ORDER BY p.place
""")  # noqa: S608 - a constant


@dataclass(slots=True)
class Order:
    """The requests of a batch in planned order: of each a number per list, and nothing larger."""

    #: In the input file.
    lines: list[int] = field(default_factory=list)
    #: Prompt tokens and max_tokens: the most work that it can be.
    num_tokens: list[int] = field(default_factory=list)
    num_prompt_tokens: list[int] = field(default_factory=list)
    #: The part of `num_tokens` that counts towards the size of a slice.
    sizes: list[int] = field(default_factory=list)
    #: Tokens that the prompt has in common with the one before, and so with any before it.
    shared: list[int] = field(default_factory=list)


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
    order = order_requests(conn)
    cuts = cut_order(conn, order, model, settings)
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
            **_expected(order, cuts),
        },
    )
    conn.execute(
        _INSERT_REQUESTS,
        {"batch_id": batch.id, "lines": order.lines, "first_places": [cut.first + 1 for cut in cuts]},
    )
    outbox.add_tickets(conn, model, len(cuts))
    lift(conn, batch.id, model)
    return len(cuts)


def cut_order(conn: Connection, order: Order, model: str, settings: Settings) -> list[Cut]:
    """Into slices that suit the groups that are ready for `model`."""
    num_groups = int(conn.scalar(_READY_GROUPS, {"model": model}) or 0)
    return cut_slices(order, _slice_tokens(sum(order.sizes), num_groups, settings), settings.slice_requests)


def _expected(order: Order, cuts: Sequence[Cut]) -> dict[str, list[int]]:
    """What slices are expected to be. A slice may be the first of its batch in its group, which then shares nothing."""
    ranges = [(cut.first, cut.first + cut.num_requests) for cut in cuts]
    return {
        "num_prompt_tokens": [sum(order.num_prompt_tokens[first:end]) for first, end in ranges],
        "num_shared_tokens": [sum(order.shared[first + 1 : end]) for first, end in ranges],
        "num_answer_tokens": [
            sum(order.sizes[first:end]) - sum(order.num_prompt_tokens[first:end]) for first, end in ranges
        ],
    }


def cut_slices(order: Order, slice_tokens: int, slice_requests: int) -> list[Cut]:
    """Cut so that no slice passes either limit unless it is a single request, and few tokens are common over a cut."""
    cuts: list[Cut] = []
    first = 0
    while first < len(order.sizes):
        end = _end_of_slice(order, first, slice_tokens, slice_requests)
        cuts.append(Cut(first, end - first, sum(order.num_tokens[first:end])))
        first = end
    return cuts


def _end_of_slice(order: Order, first: int, slice_tokens: int, slice_requests: int) -> int:
    """The place after the last request of the slice that begins at `first`."""
    end, size = first + 1, order.sizes[first]
    while end < len(order.sizes) and size + order.sizes[end] <= slice_tokens and end - first < slice_requests:
        size += order.sizes[end]
        end += 1
    if end == len(order.sizes):
        return end
    best = end
    for place in range(end - 1, first, -1):
        size -= order.sizes[place]
        if 4 * size < 3 * slice_tokens and 4 * (place - first) < 3 * slice_requests:
            break
        if order.shared[place] < order.shared[best]:
            best = place
    return best


def num_shared_tokens(before: bytes, after: bytes) -> int:
    """Tokens that two packed prompts have in common at their beginning, in whole `_SHARING_TOKENS`."""
    length = min(len(before), len(after))
    difference = int.from_bytes(before[:length]) ^ int.from_bytes(after[:length])
    num_bytes = length - (difference.bit_length() + 7) // 8
    return num_bytes // (_SHARING_TOKENS * _BYTES_PER_TOKEN) * _SHARING_TOKENS


def order_requests(conn: Connection, compared_tokens: int = _COMPARED_TOKENS) -> Order:
    """The requests of the intake table in planned order; beginnings are compared up to so many tokens."""
    order, before = Order(), b""
    for line, num_tokens, num_prompt_tokens, size, beginning in _stream(conn, compared_tokens):
        order.lines.append(line)
        order.num_tokens.append(num_tokens)
        order.num_prompt_tokens.append(num_prompt_tokens)
        order.sizes.append(size)
        # The last token of a prompt is always computed, since the first of the answer comes of it.
        most = (num_prompt_tokens - 1) // _SHARING_TOKENS * _SHARING_TOKENS
        order.shared.append(min(num_shared_tokens(before, beginning), most))
        before = beginning
    return order


def _stream(conn: Connection, compared_tokens: int) -> Iterator[tuple[int, int, int, int, bytes]]:
    rows = conn.execute(
        _IN_ORDER,
        {"answer_tokens": EXPECTED_ANSWER_TOKENS, "num_bytes": compared_tokens * _BYTES_PER_TOKEN},
        execution_options={"yield_per": max(1, _STREAM_TOKENS // compared_tokens)},
    )
    for row in rows:
        yield row.line, row.num_tokens, row.num_prompt_tokens, row.size, row.beginning


def _slice_tokens(total: int, num_groups: int, settings: Settings) -> int:
    """Small enough that every ready group gets two slices of this batch, which they then finish at about one time."""
    share = -(-total // (2 * max(1, num_groups)))
    return min(settings.slice_tokens, max(share, _LEAST_SLICE_TOKENS))
