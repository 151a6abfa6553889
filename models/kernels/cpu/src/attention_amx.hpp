// The inner loops of attention on tile registers: 16 rows of bf16 at once.
//
// Only for many rows of one sequence: which loops compute a row depends on its sequence alone, as its bits do on them.
#pragma once

#include "attention_cache.hpp"

#if defined(__AMX_BF16__)

namespace RZ_ISA {

constexpr int TILE_KEYS = 32;  // of one multiplication of weights by values

// GCC does not say that tile instructions read and write memory.
inline void order_memory() { asm volatile("" ::: "memory"); }

// Every tile register as 16 rows of 64 bytes. What the registers held is lost.
inline void configure_tiles() {
  struct {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
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

// sums += rows [16][32] times N tiles of units [16][16].
template <int N>
inline void add_product(const bf16* rows, int64_t row_stride, const uint32_t* a, const uint32_t* b, const uint32_t* c,
                        const uint32_t* d, int64_t stride) {
  _tile_loadd(4, rows, row_stride * 2);
  _tile_loadd(5, a, stride * 4);
  _tile_dpbf16ps(0, 4, 5);
  if constexpr (N > 1) {
    _tile_loadd(6, b, stride * 4);
    _tile_dpbf16ps(1, 4, 6);
  }
  if constexpr (N > 2) {
    _tile_loadd(7, c, stride * 4);
    _tile_dpbf16ps(2, 4, 7);
    _tile_loadd(5, d, stride * 4);
    _tile_dpbf16ps(3, 4, 5);
  }
}

template <int N>
static void score_groups(const bf16* rows, int64_t row_stride, const uint32_t* const* groups, int64_t stride,
                         int64_t head_dim, float* scores, int64_t score_stride) {
  clear_sums<N>();
  for (int64_t i = 0; i < head_dim; i += 32) {
    const int64_t at = i / 2 * stride;
    add_product<N>(rows + i, row_stride, groups[0] + at, groups[N > 1 ? 1 : 0] + at, groups[N > 2 ? 2 : 0] + at,
                   groups[N > 2 ? 3 : 0] + at, stride);
  }
  store_sums<N>(scores, score_stride);
}

// scores [16][16 * num_groups] of rows [16][head_dim].
static void score_on_tiles(const bf16* rows, int64_t row_stride, const uint32_t* const* groups, int64_t num_groups,
                           int64_t stride, int64_t head_dim, float* scores, int64_t score_stride) {
  order_memory();
  int64_t g = 0;
  for (; g + 4 <= num_groups; g += 4)
    score_groups<4>(rows, row_stride, groups + g, stride, head_dim, scores + g * GROUP, score_stride);
  if (g + 2 <= num_groups) {
    score_groups<2>(rows, row_stride, groups + g, stride, head_dim, scores + g * GROUP, score_stride);
    g += 2;
  }
  if (g < num_groups)
    score_groups<1>(rows, row_stride, groups + g, stride, head_dim, scores + g * GROUP, score_stride);
  order_memory();
}

template <int N>
static void weigh_columns_on_tiles(const bf16* weights, int64_t weight_stride, const uint32_t* values, int64_t head_dim,
                                   int64_t num_keys, float* out, int64_t out_stride) {
  load_sums<N>(out, out_stride);
  for (int64_t key = 0; key < num_keys; key += TILE_KEYS) {
    const uint32_t* at = values + key / 2 * head_dim;
    add_product<N>(weights + key, weight_stride, at, at + 16, at + 32, at + 48, head_dim);
  }
  store_sums<N>(out, out_stride);
}

// out [16][head_dim] += weights [16][num_keys] times values [num_keys / 2][head_dim], `num_keys` rounded up to 32.
static void weigh_on_tiles(const bf16* weights, int64_t weight_stride, const uint32_t* values, int64_t head_dim,
                           int64_t num_keys, float* out, int64_t out_stride) {
  order_memory();
  int64_t i = 0;
  for (; i + 64 <= head_dim; i += 64)
    weigh_columns_on_tiles<4>(weights, weight_stride, values + i, head_dim, num_keys, out + i, out_stride);
  if (i < head_dim)
    weigh_columns_on_tiles<2>(weights, weight_stride, values + i, head_dim, num_keys, out + i, out_stride);
  order_memory();
}

// All values of a packed tile in one piece, and zeros after its last key as far as 32 more.
static void join_values(const Tile<bf16>& tile, int64_t head_dim, uint32_t* joined) {
  const int64_t num_keys = tile.last - tile.first, group = GROUP / 2 * head_dim;
  int64_t g = 0;
  for (; g < num_keys / GROUP; g++) std::memcpy(joined + g * group, tile.values[g], group * 4);
  uint32_t* to = joined + g * group;
  if (const int64_t rest = num_keys % GROUP) {
    std::memcpy(to, tile.values[g], rest / 2 * head_dim * 4);
    if (rest % 2)  // whose neighbour need not be a number
      for (int64_t i = rest / 2 * head_dim; i < (rest / 2 + 1) * head_dim; i++) to[i] = tile.values[g][i] & 0xffff;
    to += (rest + 1) / 2 * head_dim;
  }
  std::memset(to, 0, 2 * group * 4);
}

}  // namespace RZ_ISA

#endif
