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
};

static vf load_wide(const float* p) { return load(p); }

static vf load_wide(const int32_t* p) {
  typedef int32_t vi __attribute__((vector_size(4 * W)));
  vi v;
  std::memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, vf);
}

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

// `products` [rows, PAIR] are those of the outputs from `column` on, in the order of the panels.
template <class T, class A>
static void finish_rows(const Finish& f, const A* products, int64_t row, int64_t rows, int64_t column) {
  constexpr int VECTORS = PAIR / W, HALF = VECTORS / 2;
  const int64_t first = f.silu_mul ? column / 2 : column;
  const int64_t count = std::min(f.silu_mul ? PANEL : PAIR, f.columns - first);
  vf scales[VECTORS], bias[VECTORS];
  for (int i = 0; i < VECTORS; i++) {
    scales[i] = f.column_scales ? load(f.column_scales + column + i * W) : splat(1);
    bias[i] = f.bias ? load(f.bias + column + i * W) : vf{};
  }
  T* out = (T*)f.out + row * f.out_stride + first;
  for (int64_t r = 0; r < rows; r++, products += PAIR, out += f.out_stride) {
    vf v[VECTORS];
    for (int i = 0; i < VECTORS; i++) v[i] = load_wide(products + i * W);
    if (f.row_scales)
      for (int i = 0; i < VECTORS; i++) v[i] *= scales[i] * f.row_scales[row + r];
    for (int i = 0; i < VECTORS; i++) v[i] += bias[i];
    if (f.silu_mul)
      for (int i = 0; i < HALF; i++) v[i] = v[i] / (1.0f + exponential(-v[i])) * v[HALF + i];
    put(out, v, count);
  }
}

template <class A>
static void finish(const Finish& f, const A* products, int64_t row, int64_t rows, int64_t column) {
  if (f.columns <= (f.silu_mul ? column / 2 : column)) return;  // padding alone
  if (f.out_type == F32)
    finish_rows<float>(f, products, row, rows, column);
  else
    finish_rows<bf16>(f, products, row, rows, column);
}

// A line that is written to is read first: let that happen while its products are computed.
static void fetch_for_writing(const Finish& f, int64_t row, int64_t rows, int64_t column) {
  const int64_t first = f.silu_mul ? column / 2 : column, size = f.out_type == F32 ? 4 : 2;
  const char* out = (const char*)f.out + (row * f.out_stride + first) * size;
  for (int64_t r = 0; r < rows; r++, out += f.out_stride * size) {
    __builtin_prefetch(out, 1, 3);
    if (f.out_type == F32) __builtin_prefetch(out + 64, 1, 3);
  }
}

}  // namespace RZ_ISA
