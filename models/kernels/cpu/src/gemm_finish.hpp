// What is done with products on their way out: scales, bias, gate, rounding.
#pragma once

#include "gemm_panels.hpp"
#include "kernels.hpp"

#include <algorithm>

namespace RZ_ISA {

struct Finish {
  int32_t out_type;
  void* out;
  int64_t out_stride;
  const float* bias;           // [padded outputs] or null
  const float* row_scales;     // [rows], int8 alone
  const float* column_scales;  // [padded outputs], int8 alone
  bool silu_mul;
  int64_t columns;  // of out
  bool is_streamed;  // whether rows of out are written past the caches
};

static vf load_wide(const float* p) { return load(p); }

static vf load_wide(const int32_t* p) {
  typedef int32_t vi __attribute__((vector_size(4 * W)));
  vi v;
  std::memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, vf);
}

// Whole lines of 64 bytes, past the caches, where the instruction set can.
template <class T>
constexpr bool STREAMS = false;
#if defined(__AVX512F__)
template <>
constexpr bool STREAMS<float> = true;
static void stream(float* out, const vf* values) {
  for (int64_t i = 0; i < PAIR; i += W) _mm512_stream_ps(out + i, (__m512)values[i / W]);
}
#endif
#if defined(__AVX512BF16__)
template <>
constexpr bool STREAMS<bf16> = true;
static void stream(bf16* out, const vf* values) {
  _mm512_stream_si512((__m512i*)out, (__m512i)_mm512_cvtne2ps_pbh((__m512)values[1], (__m512)values[0]));
}
#endif

template <class T>
static void put(T* out, const vf* values, int64_t count) {
  int64_t i = 0;
  for (; i + W <= count; i += W) store(out + i, values[i / W]);
  if (i < count) {
    float rest[W];
    store(rest, values[i / W]);
    for (int64_t j = 0; i < count; i++, j++) store1(out + i, rest[j]);
  }
}

// What is still to be done with the products of one block: a row at a time, so that it can go on beside the next block's
// multiplication. Tile registers leave the vector units idle, and a block's products are long in coming out of them.
template <class T, class A>
struct Finishing {
  static constexpr int VECTORS = PAIR / W, HALF = VECTORS / 2;
  const Finish& f;
  const A* products = nullptr;  // [PAIR] of the row that is next, in the order of the panels
  T* out = nullptr;
  int64_t row = 0, last = 0;  // rows to finish
  int64_t column = 0, count = 0;  // the first of the outputs, and how many columns of out they come to

  // The products of `rows` rows from `from` on and of the outputs from `from_column` on are about to be computed: a line
  // that is written to is read first, which may happen meanwhile.
  void expect(int64_t from, int64_t rows, int64_t from_column) const {
    if (f.is_streamed) return;
    const T* to = out_of(from, from_column);
    for (int64_t r = 0; r < rows; r++, to += f.out_stride) {
      __builtin_prefetch(to, 1, 3);
      if (sizeof(T) == 4) __builtin_prefetch(to + PANEL, 1, 3);
    }
  }

  // There they are.
  void begin(const A* block, int64_t from, int64_t rows, int64_t from_column) {
    column = from_column, out = out_of(from, column);
    count = std::min(f.silu_mul ? PANEL : PAIR, f.columns - (f.silu_mul ? column / 2 : column));
    products = block, row = from, last = count > 0 ? from + rows : from;  // else it is padding alone
  }

  void some(int64_t rows) {
    for (const int64_t to = std::min(row + rows, last); row < to;) finish_row();
  }

  void rest() { some(last - row); }

 private:
  T* out_of(int64_t from, int64_t from_column) const {
    return (T*)f.out + from * f.out_stride + (f.silu_mul ? from_column / 2 : from_column);
  }

  void finish_row() {
    vf v[VECTORS];
    for (int i = 0; i < VECTORS; i++) v[i] = load_wide(products + i * W);
    if (f.row_scales)
      for (int i = 0; i < VECTORS; i++) v[i] *= load(f.column_scales + column + i * W) * f.row_scales[row];
    if (f.bias)
      for (int i = 0; i < VECTORS; i++) v[i] += load(f.bias + column + i * W);
    if (f.silu_mul)
      for (int i = 0; i < HALF; i++) v[i] = v[i] / (1.0f + exponential(-v[i])) * v[HALF + i];
    const bool past_caches = f.is_streamed && count == PAIR;
    if constexpr (STREAMS<T>)
      if (past_caches) stream(out, v);
    if (!past_caches) put(out, v, count);
    row++, products += PAIR, out += f.out_stride;
  }
};

}  // namespace RZ_ISA
