// How keys and values lie in the cache, and how a tile of them is found there.
//
// Blocks of a multiple of 16 tokens with heads of a multiple of 16 elements are packed as the inner loops read them:
//   keys   [head_dim / K][block_size][K]   values [block_size / K][head_dim][K]     K = 1 for float, 2 for bf16
// so that a tile is read where it lies. Other sizes are kept as plain rows [block_size][head_dim], and a tile of them is
// packed into scratch, with zeros where it has no keys or the head has no elements.
#pragma once

#include <algorithm>

#include "attention_tiles.hpp"
#include "kernels.hpp"

namespace RZ_ISA {

inline bool is_packed(const PagedStep& step) {
  return step.block_size % GROUP == 0 && step.head_dim % GROUP == 0;
}

// Where the elements of one head in one block begin.
inline int64_t head_at(const PagedStep& step, int64_t block, int64_t head) {
  return (block * step.kv_heads + head) * step.block_size * step.head_dim;
}

// The values of one token, beside those of a neighbour that are there already; it is the second of two if `is_odd`.
static void put_row(float* to, const float* row, bool, int64_t dim) { std::memcpy(to, row, dim * 4); }

static void put_row(bf16* to, const bf16* row, bool is_odd, int64_t dim) {
  const vu kept = vu{} + (is_odd ? 0xffffu : 0xffff0000u);
  for (int64_t i = 0; i < dim; i += W) {
    vh values;
    vu both;
    std::memcpy(&values, row + i, sizeof values);
    std::memcpy(&both, to + 2 * i, sizeof both);
    both = (both & kept) | __builtin_convertvector(values, vu) << (is_odd ? 16 : 0);
    std::memcpy(to + 2 * i, &both, sizeof both);
  }
}

// One head of one token, of whose keys and values all heads lie at `key` and `value`.
template <class T>
static void write_head(const PagedStep& step, T* keys, T* values, const T* key, const T* value, int64_t slot,
                       int64_t head) {
  const int64_t size = step.block_size, dim = step.head_dim, at = slot % size;
  constexpr int64_t K = Product<T>::K;
  T* k = keys + head_at(step, slot / size, head);
  T* v = values + head_at(step, slot / size, head);
  key += head * dim, value += head * dim;
  if (!is_packed(step)) {
    std::memcpy(k + at * dim, key, dim * sizeof(T));
    std::memcpy(v + at * dim, value, dim * sizeof(T));
    return;
  }
  for (int64_t i = 0; i < dim / K; i++) std::memcpy(k + (i * size + at) * K, key + i * K, K * sizeof(T));
  put_row(v + at / K * dim * K, value, at % K, dim);
}

// The values of one token, or of two neighbours element by element.
static void join_rows(float* to, const float* row, const float*, int64_t dim) { std::memcpy(to, row, dim * 4); }

static void join_rows(bf16* to, const bf16* even, const bf16* odd, int64_t dim) {
  for (int64_t i = 0; i < dim; i += W) {
    vh a, b;
    std::memcpy(&a, even + i, sizeof a);
    std::memcpy(&b, odd + i, sizeof b);
    const vu joined = __builtin_convertvector(a, vu) | __builtin_convertvector(b, vu) << 16;
    std::memcpy(to + 2 * i, &joined, sizeof joined);
  }
}

// 16 tokens that fill 16 neighbouring slots of a packed block.
template <class T>
static void write_group(const PagedStep& step, T* keys, T* values, const T* key, int64_t key_stride, const T* value,
                        int64_t value_stride, int64_t slot) {
  const int64_t size = step.block_size, dim = step.head_dim, at = slot % size;
  constexpr int64_t K = Product<T>::K;
  for (int64_t head = 0; head < step.kv_heads; head++, key += dim, value += dim) {
    T* k = keys + head_at(step, slot / size, head) + at * K;
    T* v = values + head_at(step, slot / size, head) + at * dim;
    for (int64_t i = 0; i < dim / K; i++)
      for (int64_t token = 0; token < GROUP; token++)
        std::memcpy(k + (i * size + token) * K, key + token * key_stride + i * K, K * sizeof(T));
    for (int64_t token = 0; token < GROUP; token += K)
      join_rows(v + token * dim, value + token * value_stride, value + (token + K - 1) * value_stride, dim);
  }
}

template <class T>
static void write_tokens(const PagedStep& step, T* keys, T* values, const T* key, int64_t key_stride, const T* value,
                         int64_t value_stride, int64_t first, int64_t last) {
  for (int64_t token = first; token < last;) {
    const int64_t slot = step.slots[token];
    const T *k = key + token * key_stride, *v = value + token * value_stride;
    bool is_group = is_packed(step) && slot % GROUP == 0 && token + GROUP <= last;
    for (int64_t i = 1; is_group && i < GROUP; i++) is_group = step.slots[token + i] == slot + i;
    if (is_group)
      write_group(step, keys, values, k, key_stride, v, value_stride, slot);
    else
      for (int64_t head = 0; head < step.kv_heads; head++) write_head(step, keys, values, k, v, slot, head);
    token += is_group ? GROUP : 1;
  }
}

// The keys of one head from position `first` to `last`, `first` a multiple of 16 and no more than TILE apart.
template <class T>
struct Tile {
  typedef typename Product<T>::Unit Unit;
  static constexpr int K = Product<T>::K;
  int64_t first, last;
  int64_t key_stride, value_stride;        // in units
  const Unit* keys[TILE / GROUP];          // of every 16 keys, [head_dim / K] rows of units
  const Unit* values[TILE / GROUP];        // of every 16 keys, [16 / K] rows of units

  // `scratch` holds 2 * TILE * round_up(head_dim, 16) elements.
  void find(const PagedStep& step, const T* key_cache, const T* value_cache, const int32_t* blocks, int64_t head,
            int64_t from, int64_t to, T* scratch) {
    first = from, last = to;
    if (is_packed(step)) {
      key_stride = step.block_size, value_stride = step.head_dim;
      for (int64_t at = first; at < last; at += GROUP) {
        const int64_t block = head_at(step, blocks[at / step.block_size], head), offset = at % step.block_size;
        keys[(at - first) / GROUP] = (const Unit*)(key_cache + block) + offset;
        values[(at - first) / GROUP] = (const Unit*)(value_cache + block + offset * step.head_dim);
      }
    } else {
      pack(step, key_cache, value_cache, blocks, head, scratch);
    }
  }

  // Asks for packed blocks that are read soon: the processor foresees no jump from one to the next.
  void fetch_keys(int64_t head_dim) const {
    for (int64_t g = 0; g * GROUP < last - first; g++)
      for (int64_t i = 0; i < head_dim / K; i++) __builtin_prefetch(keys[g] + i * key_stride, 0, 2);
  }
  void fetch_values(int64_t head_dim) const {
    constexpr int64_t LINE = 64 / sizeof(Unit);
    for (int64_t g = 0; g * GROUP < last - first; g++)
      for (int64_t i = 0; i < GROUP / K * head_dim; i += LINE) __builtin_prefetch(values[g] + i, 0, 2);
  }

 private:
  void pack(const PagedStep& step, const T* key_cache, const T* value_cache, const int32_t* blocks, int64_t head,
            T* scratch) {
    const int64_t dim = step.head_dim, padded = round_up(dim, GROUP);
    T *k = scratch, *v = scratch + TILE * padded;
    std::memset(scratch, 0, 2 * TILE * padded * sizeof(T));
    key_stride = TILE, value_stride = padded;
    for (int64_t at = first; at < last; at++) {
      const int64_t slot = at % step.block_size * dim + head_at(step, blocks[at / step.block_size], head);
      const int64_t column = at - first;
      for (int64_t i = 0; i < dim; i++) {
        k[(i / K * TILE + column) * K + i % K] = key_cache[slot + i];
        v[(column / K * padded + i) * K + column % K] = value_cache[slot + i];
      }
    }
    for (int64_t g = 0; g * GROUP < last - first; g++) {
      keys[g] = (const Unit*)k + g * GROUP;
      values[g] = (const Unit*)v + g * (GROUP / K) * padded;
    }
  }
};

}  // namespace RZ_ISA
