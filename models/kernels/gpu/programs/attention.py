"""Attention over blocks of the cache, in one pass over keys and values with a running greatest score.

A block's [block_size, head_dim] elements of one head are plain rows. What lies outside of a sequence is masked where it
is loaded, so that it never becomes a number: the rest of a block may hold NaN. Scores are in units of log2.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def write_cache(
    key,
    value,
    keys,
    values,
    slots,
    key_stride,
    value_stride,
    block_stride,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
):
    """One head of one token, grid (tokens, kv_heads). A slot below zero is no place: nothing is written."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    slot = tl.load(slots + token)
    dims = tl.arange(0, DIM)
    is_written = (dims < HEAD_DIM) & (slot >= 0)
    # A quotient of numbers below zero is not rounded alike everywhere; it is not used, but shall be inside.
    slot = tl.maximum(slot, 0)
    place = (slot // BLOCK_SIZE) * block_stride + (head * BLOCK_SIZE + slot % BLOCK_SIZE) * HEAD_DIM + dims
    of_head = head * HEAD_DIM + dims
    tl.store(keys + place, tl.load(key + token * key_stride + of_head, mask=is_written, other=0.0), mask=is_written)
    tl.store(
        values + place, tl.load(value + token * value_stride + of_head, mask=is_written, other=0.0), mask=is_written
    )


@triton.jit
def _product(left, right, IS_WIDENED: tl.constexpr):
    """Sums in float32. Widened, the operands are float32 first, which changes no product of bfloat16.

    The interpreter multiplies bfloat16 as the integers that it stores them as. Without "ieee", a GPU would round
    float32 to ten bits of mantissa.
    """
    if IS_WIDENED:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), input_precision="ieee")
    return tl.dot(left, right, input_precision="ieee")


@triton.jit
def _attend(
    query,
    positions,
    first,
    end,
    keys,
    values,
    table,
    block_stride,
    scale,
    WINDOW: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    IS_WIDENED: tl.constexpr,
):
    """query [ROWS, DIM] at `positions` [ROWS], over the keys at positions from `first` to before `end`.

    `keys` and `values` point to the kv head in block 0, `table` to the sequence's blocks. Returns the greatest score
    [ROWS], and relative to it the sum of the weights [ROWS] and of the weighted values [ROWS, DIM].
    """
    dims = tl.arange(0, DIM)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    weighted = tl.zeros([ROWS, DIM], tl.float32)
    for start in range(first, end, TILE):
        at = start + tl.arange(0, TILE)
        is_key = at < end
        # The cache of a layer can have more than 2^31 elements.
        blocks = tl.load(table + at // BLOCK_SIZE, mask=is_key, other=0).to(tl.int64)
        rows = blocks * block_stride + (at % BLOCK_SIZE) * HEAD_DIM
        is_element = is_key[:, None] & (dims < HEAD_DIM)[None, :]
        is_transposed_element = (dims < HEAD_DIM)[:, None] & is_key[None, :]
        key = tl.load(keys + dims[:, None] + rows[None, :], mask=is_transposed_element, other=0.0)
        value = tl.load(values + rows[:, None] + dims[None, :], mask=is_element, other=0.0)
        distance = positions[:, None] - at[None, :]
        is_seen = is_key[None, :] & (distance >= 0) & (distance < WINDOW)
        scores = tl.where(is_seen, _product(query, key, IS_WIDENED) * scale, float("-inf"))
        greatest = tl.maximum(best, tl.max(scores, 1))
        # Where nothing was seen yet, -inf - -inf would be NaN.
        shift = tl.where(greatest == float("-inf"), 0.0, greatest)
        weights = tl.where(is_seen, tl.exp2(scores - shift[:, None]), 0.0)
        kept = tl.exp2(best - shift)
        total = total * kept + tl.sum(weights, 1)
        weighted = weighted * kept[:, None] + _product(weights.to(value.dtype), value, IS_WIDENED)
        best = greatest
    return best, total, weighted


@triton.jit
def _segment_size(length, WINDOW: tl.constexpr, TILE: tl.constexpr, SEGMENTS: tl.constexpr, LEAST: tl.constexpr):
    """The first position that is seen, and how many a segment has: it depends on this sequence alone."""
    begin = tl.maximum(length - WINDOW, 0)
    size = tl.cdiv(tl.cdiv(length - begin, SEGMENTS), TILE) * TILE
    return begin, tl.maximum(size, LEAST)


# What changes from step to step is not compiled in: that would be done again in the middle of serving.
@triton.jit(do_not_specialize=["table_stride"])
def decode(
    query,
    keys,
    values,
    part_best,
    part_total,
    part_weighted,
    query_starts,
    context_lengths,
    block_tables,
    query_stride,
    block_stride,
    table_stride,
    scale,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    SEGMENTS: tl.constexpr,
    LEAST: tl.constexpr,
    IS_WIDENED: tl.constexpr,
):
    """A segment of a sequence of one new token, for all query heads of a kv head; grid (sequences, kv_heads, SEGMENTS).

    The parts are [sequences, HEADS, SEGMENTS] and [..., HEAD_DIM] float32; those of segments without a position are not
    written. Other sequences are skipped.
    """
    sequence = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    segment = tl.program_id(2)
    token = tl.load(query_starts + sequence).to(tl.int64)
    if tl.load(query_starts + sequence + 1) - token != 1:
        return
    length = tl.load(context_lengths + sequence)
    begin, size = _segment_size(length, WINDOW, TILE, SEGMENTS, LEAST)
    first = begin + segment * size
    if first >= length:
        return
    rows, dims = tl.arange(0, ROWS), tl.arange(0, DIM)
    heads = kv_head * GROUP + rows
    is_element = (rows < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    places = heads[:, None] * HEAD_DIM + dims[None, :]
    best, total, weighted = _attend(
        tl.load(query + token * query_stride + places, mask=is_element, other=0.0),
        tl.full([ROWS], 0, tl.int32) + (length - 1),
        first,
        tl.minimum(first + size, length),
        keys + kv_head * BLOCK_SIZE * HEAD_DIM,
        values + kv_head * BLOCK_SIZE * HEAD_DIM,
        block_tables + sequence * table_stride,
        block_stride,
        scale,
        WINDOW,
        BLOCK_SIZE,
        HEAD_DIM,
        DIM,
        ROWS,
        TILE,
        IS_WIDENED,
    )
    parts = (sequence * HEADS + heads) * SEGMENTS + segment
    tl.store(part_best + parts, best, mask=rows < GROUP)
    tl.store(part_total + parts, total, mask=rows < GROUP)
    tl.store(part_weighted + parts[:, None] * HEAD_DIM + dims[None, :], weighted, mask=is_element)


@triton.jit
def merge(
    part_best,
    part_total,
    part_weighted,
    out,
    query_starts,
    context_lengths,
    HEADS: tl.constexpr,
    WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    TILE: tl.constexpr,
    SEGMENTS: tl.constexpr,
    LEAST: tl.constexpr,
):
    """The segments of one head that `decode` left, grid (sequences, HEADS); zeros for a sequence without a position."""
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    token = tl.load(query_starts + sequence).to(tl.int64)
    if tl.load(query_starts + sequence + 1) - token != 1:
        return
    length = tl.load(context_lengths + sequence)
    begin, size = _segment_size(length, WINDOW, TILE, SEGMENTS, LEAST)
    segments, dims = tl.arange(0, SEGMENTS), tl.arange(0, DIM)
    is_part = begin + segments * size < length
    parts = (sequence * HEADS + head) * SEGMENTS + segments
    best = tl.load(part_best + parts, mask=is_part, other=float("-inf"))
    greatest = tl.max(best, 0)
    shift = tl.where(greatest == float("-inf"), 0.0, greatest)
    kept = tl.where(is_part, tl.exp2(best - shift), 0.0)
    total = tl.sum(tl.load(part_total + parts, mask=is_part, other=0.0) * kept, 0)
    is_element = is_part[:, None] & (dims < HEAD_DIM)[None, :]
    weighted = tl.load(part_weighted + parts[:, None] * HEAD_DIM + dims[None, :], mask=is_element, other=0.0)
    attended = tl.sum(weighted * kept[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out + (token * HEADS + head) * HEAD_DIM + dims, attended.to(out.dtype.element_ty), mask=dims < HEAD_DIM)


@triton.jit(do_not_specialize=["num_sequences", "table_stride"])
def prefill(
    query,
    keys,
    values,
    out,
    query_starts,
    context_lengths,
    block_tables,
    query_stride,
    block_stride,
    table_stride,
    scale,
    num_sequences,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    QUERIES: tl.constexpr,
    TILE: tl.constexpr,
    SEARCHED: tl.constexpr,
    IS_WIDENED: tl.constexpr,
):
    """QUERIES tokens of one sequence, for all query heads of a kv head; sequences of one new token are skipped.

    Grid (tokens // QUERIES + sequences, kv_heads): counted so, every sequence begins at a tile of its own, whose number
    is known from where its tokens begin, and no host has to know the lengths. Some tiles are left without tokens.
    """
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    num_begun = 0
    for start in range(0, num_sequences, SEARCHED):
        indices = start + tl.arange(0, SEARCHED)
        starts = tl.load(query_starts + indices, mask=indices < num_sequences, other=0)
        has_begun = (starts // QUERIES + indices <= tile) & (indices < num_sequences)
        num_begun += tl.sum(has_begun.to(tl.int32), 0)
    sequence = num_begun - 1
    token = tl.load(query_starts + sequence)
    num_tokens = tl.load(query_starts + sequence + 1) - token
    begun = (tile - token // QUERIES - sequence) * QUERIES
    if num_tokens == 1:
        return
    if begun >= num_tokens:
        return
    length = tl.load(context_lengths + sequence)
    rows, dims = tl.arange(0, ROWS), tl.arange(0, DIM)
    queries = begun + rows // GROUP
    heads = kv_head * GROUP + rows % GROUP
    is_row = (rows < QUERIES * GROUP) & (queries < num_tokens)
    is_element = is_row[:, None] & (dims < HEAD_DIM)[None, :]
    tokens = (token + queries).to(tl.int64)
    at = heads[:, None] * HEAD_DIM + dims[None, :]
    num_before = length - num_tokens
    _, total, weighted = _attend(
        tl.load(query + tokens[:, None] * query_stride + at, mask=is_element, other=0.0),
        num_before + queries,
        tl.maximum(num_before + begun - WINDOW + 1, 0),
        num_before + tl.minimum(begun + QUERIES, num_tokens),
        keys + kv_head * BLOCK_SIZE * HEAD_DIM,
        values + kv_head * BLOCK_SIZE * HEAD_DIM,
        block_tables + sequence.to(tl.int64) * table_stride,
        block_stride,
        scale,
        WINDOW,
        BLOCK_SIZE,
        HEAD_DIM,
        DIM,
        ROWS,
        TILE,
        IS_WIDENED,
    )
    attended = weighted / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(out + tokens[:, None] * HEADS * HEAD_DIM + at, attended.to(out.dtype.element_ty), mask=is_element)
