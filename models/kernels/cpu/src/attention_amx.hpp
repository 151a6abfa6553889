// The inner loops of attention on tile registers: 16 rows of bf16 at once.
//
// What a tile register computes of one row depends on that row alone, to the bit: rows of several sequences may share one.
// Values are taken 16 keys at a time, which lie together wherever the next 16 are.
#pragma once

#include <algorithm>

#include "attention_cache.hpp"

#if defined(__AMX_BF16__)

namespace RZ_ISA {

// GCC does not say that tile instructions read and write memory.
inline void order_memory() { asm volatile("" ::: "memory"); }

// Registers 0 to 3 are sums, 4 queries, 5 keys, 6 weights of 16 keys, and 7 the values of 16 keys, two by two. What the
// registers held is lost. `most_rows`: that are computed at once; less than 16 take less time.
inline void configure_tiles(int64_t most_rows) {
  struct {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 32, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 8};
  } config;
  for (int at : {0, 1, 2, 3, 4, 6}) config.rows[at] = uint8_t(std::min<int64_t>(most_rows, SUBTILE));
  order_memory();
  _tile_loadconfig(&config);
}

inline void release_tiles() { _tile_release(); }

// sums of N neighbours in registers 0 to N - 1; a register's number has to be a literal.
template <int N>
inline void clear_sums() {
  _tile_zero(0);
  if constexpr (N > 1) _tile_zero(1);
  if constexpr (N > 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
}

template <int N>
inline void load_sums(const float* from, int64_t stride) {
  _tile_loadd(0, from, stride * 4);
  if constexpr (N > 1) _tile_loadd(1, from + 16, stride * 4);
  if constexpr (N > 2) {
    _tile_loadd(2, from + 32, stride * 4);
    _tile_loadd(3, from + 48, stride * 4);
  }
}

template <int N>
inline void store_sums(float* to, int64_t stride) {
  _tile_stored(0, to, stride * 4);
  if constexpr (N > 1) _tile_stored(1, to + 16, stride * 4);
  if constexpr (N > 2) {
    _tile_stored(2, to + 32, stride * 4);
    _tile_stored(3, to + 48, stride * 4);
  }
}

// Asks for what lies `ahead` units after a register's lines, if anything does: in the order in which it will be read.
template <int ROWS>
inline void fetch_ahead(const uint32_t* lines, int64_t stride, int64_t ahead) {
  if (ahead)
    for (int64_t i = 0; i < ROWS; i++) __builtin_prefetch(lines + i * stride + ahead, 0, 2);
}

template <int N>
static void score_groups(const bf16* rows, int64_t row_stride, const uint32_t* const* groups, int64_t stride,
                         int64_t head_dim, float* scores, int64_t score_stride, int64_t ahead) {
  clear_sums<N>();
  for (int64_t i = 0; i < head_dim; i += 32) {
    const int64_t at = i / 2 * stride;
    _tile_loadd(4, rows + i, row_stride * 2);
    _tile_loadd(5, groups[0] + at, stride * 4);
    _tile_dpbf16ps(0, 4, 5);
    fetch_ahead<GROUP>(groups[0] + at, stride, ahead);
    if constexpr (N > 1) {
      _tile_loadd(5, groups[1] + at, stride * 4);
      _tile_dpbf16ps(1, 4, 5);
      fetch_ahead<GROUP>(groups[1] + at, stride, ahead);
    }
    if constexpr (N > 2) {
      _tile_loadd(5, groups[2] + at, stride * 4);
      _tile_dpbf16ps(2, 4, 5);
      fetch_ahead<GROUP>(groups[2] + at, stride, ahead);
      _tile_loadd(5, groups[3] + at, stride * 4);
      _tile_dpbf16ps(3, 4, 5);
      fetch_ahead<GROUP>(groups[3] + at, stride, ahead);
    }
  }
  store_sums<N>(scores, score_stride);
}

// Two times 16 rows and two groups: a register of keys serves both. What is loaded again is in the nearest cache.
inline void score_square(const bf16* rows, int64_t row_stride, const uint32_t* const* groups, int64_t stride,
                         int64_t head_dim, float* scores, int64_t score_stride) {
  clear_sums<4>();
  for (int64_t i = 0; i < head_dim; i += 32) {
    const int64_t at = i / 2 * stride;
    _tile_loadd(4, rows + i, row_stride * 2);
    _tile_loadd(5, groups[0] + at, stride * 4);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(5, groups[1] + at, stride * 4);
    _tile_dpbf16ps(1, 4, 5);
    _tile_loadd(4, rows + SUBTILE * row_stride + i, row_stride * 2);
    _tile_dpbf16ps(3, 4, 5);
    _tile_loadd(5, groups[0] + at, stride * 4);
    _tile_dpbf16ps(2, 4, 5);
  }
  store_sums<2>(scores, score_stride);
  _tile_stored(2, scores + SUBTILE * score_stride, score_stride * 4);
  _tile_stored(3, scores + SUBTILE * score_stride + 16, score_stride * 4);
}

// scores [16 or 32][16 * num_groups] of rows [16 or 32][head_dim], whichever `num_rows` take. `ahead`: units from a few
// rows' keys to those that are scored next, or 0.
static void score_on_tiles(int64_t num_rows, const bf16* rows, int64_t row_stride, const uint32_t* const* groups,
                           int64_t num_groups, int64_t stride, int64_t head_dim, float* scores, int64_t score_stride,
                           int64_t ahead = 0) {
  order_memory();
  int64_t g = 0;
  if (num_rows > SUBTILE)
    for (; g + 2 <= num_groups; g += 2)
      score_square(rows, row_stride, groups + g, stride, head_dim, scores + g * GROUP, score_stride);
  for (int64_t r = 0, first = g; r < num_rows; r += SUBTILE, g = r < num_rows ? first : g) {
    const bf16* from = rows + r * row_stride;
    float* to = scores + r * score_stride;
    for (; g + 4 <= num_groups; g += 4)
      score_groups<4>(from, row_stride, groups + g, stride, head_dim, to + g * GROUP, score_stride, ahead);
    if (g + 2 <= num_groups) {
      score_groups<2>(from, row_stride, groups + g, stride, head_dim, to + g * GROUP, score_stride, ahead);
      g += 2;
    }
    if (g < num_groups)
      score_groups<1>(from, row_stride, groups + g, stride, head_dim, to + g * GROUP, score_stride, ahead);
  }
  order_memory();
}

template <int N>
static void weigh_columns_on_tiles(const bf16* weights, int64_t weight_stride, const uint32_t* const* groups,
                                   int64_t num_groups, int64_t column, int64_t head_dim, float* out,
                                   int64_t out_stride, int64_t ahead) {
  load_sums<N>(out, out_stride);
  for (int64_t g = 0; g < num_groups; g++) {
    const uint32_t* at = groups[g] + column;
    _tile_loadd(6, weights + g * GROUP, weight_stride * 2);
    _tile_loadd(7, at, head_dim * 4);
    _tile_dpbf16ps(0, 6, 7);
    fetch_ahead<GROUP / 2>(at, head_dim, ahead);
    _tile_loadd(7, at + 16, head_dim * 4);
    _tile_dpbf16ps(1, 6, 7);
    fetch_ahead<GROUP / 2>(at + 16, head_dim, ahead);
    if constexpr (N > 2) {
      _tile_loadd(7, at + 32, head_dim * 4);
      _tile_dpbf16ps(2, 6, 7);
      fetch_ahead<GROUP / 2>(at + 32, head_dim, ahead);
      _tile_loadd(7, at + 48, head_dim * 4);
      _tile_dpbf16ps(3, 6, 7);
      fetch_ahead<GROUP / 2>(at + 48, head_dim, ahead);
    }
  }
  store_sums<N>(out, out_stride);
}

// Two times 16 rows and 32 columns.
inline void weigh_square(const bf16* weights, int64_t weight_stride, const uint32_t* const* groups, int64_t num_groups,
                         int64_t column, int64_t head_dim, float* out, int64_t out_stride) {
  load_sums<2>(out, out_stride);
  _tile_loadd(2, out + SUBTILE * out_stride, out_stride * 4);
  _tile_loadd(3, out + SUBTILE * out_stride + 16, out_stride * 4);
  for (int64_t g = 0; g < num_groups; g++) {
    const uint32_t* at = groups[g] + column;
    _tile_loadd(6, weights + g * GROUP, weight_stride * 2);
    _tile_loadd(7, at, head_dim * 4);
    _tile_dpbf16ps(0, 6, 7);
    _tile_loadd(7, at + 16, head_dim * 4);
    _tile_dpbf16ps(1, 6, 7);
    _tile_loadd(6, weights + SUBTILE * weight_stride + g * GROUP, weight_stride * 2);
    _tile_dpbf16ps(3, 6, 7);
    _tile_loadd(7, at, head_dim * 4);
    _tile_dpbf16ps(2, 6, 7);
  }
  store_sums<2>(out, out_stride);
  _tile_stored(2, out + SUBTILE * out_stride, out_stride * 4);
  _tile_stored(3, out + SUBTILE * out_stride + 16, out_stride * 4);
}

// out [16 or 32][head_dim] += weights [16 or 32][16 * num_groups] times the groups' values, each [8][head_dim] twos.
static void weigh_on_tiles(int64_t num_rows, const bf16* weights, int64_t weight_stride, const uint32_t* const* groups,
                           int64_t num_groups, int64_t head_dim, float* out, int64_t out_stride,
                           int64_t ahead = 0) {
  order_memory();
  int64_t i = 0;
  if (num_rows > SUBTILE)
    for (; i < head_dim; i += 32)
      weigh_square(weights, weight_stride, groups, num_groups, i, head_dim, out + i, out_stride);
  for (; i + 64 <= head_dim; i += 64)
    weigh_columns_on_tiles<4>(weights, weight_stride, groups, num_groups, i, head_dim, out + i, out_stride, ahead);
  if (i < head_dim)
    weigh_columns_on_tiles<2>(weights, weight_stride, groups, num_groups, i, head_dim, out + i, out_stride, ahead);
  order_memory();
}

// Where a tile ends within 16 keys: their values copied, with zeros for the rest. A weight of zero would not do, since
// what the cache holds there need not be a number. `copy` holds [8][head_dim] twos.
static void end_values(Tile<bf16>& tile, int64_t head_dim, uint32_t* copy) {
  const int64_t num_keys = tile.last - tile.first, rest = num_keys % GROUP;
  if (!rest) return;
  const uint32_t*& last = tile.values[num_keys / GROUP];
  std::memcpy(copy, last, rest / 2 * head_dim * 4);
  uint32_t* to = copy + rest / 2 * head_dim;
  if (rest % 2) {
    for (int64_t i = 0; i < head_dim; i++) to[i] = last[rest / 2 * head_dim + i] & 0xffff;
    to += head_dim;
  }
  std::memset(to, 0, (copy + GROUP / 2 * head_dim - to) * 4);
  last = copy;
}

}  // namespace RZ_ISA

#endif
