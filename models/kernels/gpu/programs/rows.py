"""Norms, rotations, gates and greatest logits: each row by itself, in float32 whatever the type."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_norm(
    delta,
    residual,
    weight,
    out,
    delta_stride,
    residual_stride,
    eps,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_DELTA: tl.constexpr,
):
    """One row, grid (rows,): residual += delta, in place, and its norm, of what was rounded to the residual's type."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    is_column = columns < SIZE
    added = tl.load(residual + row * residual_stride + columns, mask=is_column, other=0.0).to(tl.float32)
    if HAS_DELTA:
        added += tl.load(delta + row * delta_stride + columns, mask=is_column, other=0.0).to(tl.float32)
        rounded = added.to(residual.dtype.element_ty)
        tl.store(residual + row * residual_stride + columns, rounded, mask=is_column)
        added = rounded.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(added * added, 0) / SIZE + eps)
    normed = added * scale * tl.load(weight + columns, mask=is_column, other=0.0).to(tl.float32)
    tl.store(out + row * SIZE + columns, normed.to(out.dtype.element_ty), mask=is_column)


@triton.jit
def norm_rotate(
    heads,
    query_norm,
    key_norm,
    cosine,
    sine,
    stride,
    eps,
    NUM_QUERIES: tl.constexpr,
    HALF: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    """One head of a query or key of one token, in place; grid (tokens, heads + kv_heads)."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    columns = tl.arange(0, WIDTH)
    is_column = columns < HALF
    place = heads + token * stride + head * 2 * HALF + columns
    first = tl.load(place, mask=is_column, other=0.0).to(tl.float32)
    second = tl.load(place + HALF, mask=is_column, other=0.0).to(tl.float32)
    if HAS_NORM:
        scale = 1.0 / tl.sqrt((tl.sum(first * first, 0) + tl.sum(second * second, 0)) / (2 * HALF) + eps)
        weight = query_norm
        if head >= NUM_QUERIES:
            weight = key_norm
        first *= scale * tl.load(weight + columns, mask=is_column, other=0.0).to(tl.float32)
        second *= scale * tl.load(weight + HALF + columns, mask=is_column, other=0.0).to(tl.float32)
    cosines = tl.load(cosine + token * HALF + columns, mask=is_column, other=0.0)
    sines = tl.load(sine + token * HALF + columns, mask=is_column, other=0.0)
    element = heads.dtype.element_ty
    tl.store(place, (first * cosines - second * sines).to(element), mask=is_column)
    tl.store(place + HALF, (second * cosines + first * sines).to(element), mask=is_column)


@triton.jit
def silu_mul(gate_up, out, gate_up_stride, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """silu(gate) * up of one row's halves, grid (rows, tiles of WIDTH)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    is_column = columns < SIZE
    gate = tl.load(gate_up + row * gate_up_stride + columns, mask=is_column, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * gate_up_stride + SIZE + columns, mask=is_column, other=0.0).to(tl.float32)
    gated = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * SIZE + columns, gated.to(out.dtype.element_ty), mask=is_column)


@triton.jit
def greatest_of_parts(
    logits,
    part_best,
    part_index,
    part_finite,
    stride,
    entries,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The first greatest of one part of a row, and whether the part is finite; grid (rows, PARTS)."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    size = tl.cdiv(entries, PARTS)
    end = tl.minimum((part + 1) * size, entries)
    best = tl.full([WIDTH], float("-inf"), tl.float32)
    index = tl.zeros([WIDTH], tl.int32)
    is_finite = tl.full([WIDTH], 1, tl.int32)
    for start in range(part * size, end, WIDTH):
        columns = start + tl.arange(0, WIDTH)
        is_column = columns < end
        values = tl.load(logits + row * stride + columns, mask=is_column, other=float("-inf")).to(tl.float32)
        # False for NaN, too.
        is_number = (values > float("-inf")) & (values < float("inf"))
        is_finite = tl.where(is_number | (columns >= end), is_finite, 0)
        # Greater alone, so that the first of equals stays.
        is_greater = is_number & (values > best)
        best = tl.where(is_greater, values, best)
        index = tl.where(is_greater, columns, index)
    greatest = tl.max(best, 0)
    at = row * PARTS + part
    tl.store(part_best + at, greatest)
    tl.store(part_index + at, tl.min(tl.where(best == greatest, index, 2147483647), 0))
    tl.store(part_finite + at, tl.min(is_finite, 0))


@triton.jit
def greatest_of_rows(part_best, part_index, part_finite, out, PARTS: tl.constexpr):
    """The first greatest of a row from its parts, -1 where one is not finite; grid (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    at = row * PARTS + tl.arange(0, PARTS)
    best = tl.load(part_best + at)
    index = tl.where(best == tl.max(best, 0), tl.load(part_index + at), 2147483647)
    is_finite = tl.min(tl.load(part_finite + at), 0)
    tl.store(out + row, tl.where(is_finite == 1, tl.min(index, 0), -1).to(tl.int64))
