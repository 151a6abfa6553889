// The products of up to BLOCK rows with one pair of panels, on vector registers.
#pragma once

#include "gemm_panels.hpp"

namespace RZ_ISA {

// Rows whose sums stay in registers, two panels wide.
#if defined(__AVX512F__)
constexpr int64_t BLOCK = 12;
#else
constexpr int64_t BLOCK = 4;
#endif

// Blocks of about one size: a block of few rows reads the panels for little.
static int64_t next_block(int64_t rows) {
  const int64_t blocks = (rows + BLOCK - 1) / BLOCK;
  return (rows + blocks - 1) / blocks;
}

template <int ROWS>
static void multiply(const bf16* x, int64_t stride, const bf16* panels, int64_t padded, float* products) {
  constexpr int VECTORS = PAIR / W;
  vf sums[ROWS][VECTORS] = {};
  for (int64_t k = 0; k < padded; k += 2) {
    for (int v = 0; v < VECTORS; v++) {
      const bf16* from = panels + (v * W / PANEL) * padded * PANEL + k * PANEL + v * W % PANEL * 2;
#if defined(__AVX512BF16__)
      const __m512bh pairs = (__m512bh)_mm512_loadu_si512(from);
      for (int row = 0; row < ROWS; row++) {
        int32_t pair;
        std::memcpy(&pair, x + row * stride + k, 4);
        sums[row][v] = (vf)_mm512_dpbf16_ps((__m512)sums[row][v], (__m512bh)_mm512_set1_epi32(pair), pairs);
      }
#else
      vu pairs;
      std::memcpy(&pairs, from, sizeof pairs);
      const vf even = (vf)(pairs << 16), odd = (vf)(pairs & 0xffff0000u);
      for (int row = 0; row < ROWS; row++)
        sums[row][v] += even * load1(x + row * stride + k) + odd * load1(x + row * stride + k + 1);
#endif
    }
  }
  for (int row = 0; row < ROWS; row++)
    for (int v = 0; v < VECTORS; v++) store(products + row * PAIR + v * W, sums[row][v]);
}

typedef int32_t vs __attribute__((vector_size(4 * W)));

template <int ROWS>
static void multiply(const int8_t* x, int64_t stride, const int8_t* panels, int64_t padded, int32_t* products) {
  constexpr int VECTORS = PAIR / W;
  vs sums[ROWS][VECTORS] = {};
#if defined(__AVX512VNNI__)
  vs columns[VECTORS] = {};  // sums over the weights of a column: x is taken as x + 128, which this makes good
#endif
  for (int64_t k = 0; k < padded; k += 4) {
    for (int v = 0; v < VECTORS; v++) {
      const int8_t* from = panels + (v * W / PANEL) * padded * PANEL + k * PANEL + v * W % PANEL * 4;
#if defined(__AVX512VNNI__)
      const __m512i groups = _mm512_loadu_si512(from);
      columns[v] = (vs)_mm512_dpbusd_epi32((__m512i)columns[v], _mm512_set1_epi8(1), groups);
      for (int row = 0; row < ROWS; row++) {
        int32_t group;
        std::memcpy(&group, x + row * stride + k, 4);
        const __m512i shifted = _mm512_set1_epi32(group ^ int32_t(0x80808080));
        sums[row][v] = (vs)_mm512_dpbusd_epi32((__m512i)sums[row][v], shifted, groups);
      }
#else
      vs groups;
      std::memcpy(&groups, from, sizeof groups);
      for (int i = 0; i < 4; i++) {
        const vs weights = (groups << (24 - 8 * i)) >> 24;
        for (int row = 0; row < ROWS; row++) sums[row][v] += weights * int32_t(x[row * stride + k + i]);
      }
#endif
    }
  }
  for (int row = 0; row < ROWS; row++)
    for (int v = 0; v < VECTORS; v++) {
#if defined(__AVX512VNNI__)
      const vs result = sums[row][v] - columns[v] * 128;
#else
      const vs result = sums[row][v];
#endif
      std::memcpy(products + row * PAIR + v * W, &result, sizeof result);
    }
}

template <class Kind>
struct Rows {
  template <class Other>
  void operator()(const typename Kind::Element* x, int64_t stride, int64_t rows, const typename Kind::Element* panels,
                  int64_t padded, Fetch, typename Kind::Accumulator* products, Other&) {
#define RZ_CASE(n) \
  case n:          \
    return multiply<n>(x, stride, panels, padded, products);
    switch (rows) {
      RZ_CASE(1)
      RZ_CASE(2)
      RZ_CASE(3)
      RZ_CASE(4)
#if defined(__AVX512F__)
      RZ_CASE(5)
      RZ_CASE(6)
      RZ_CASE(7)
      RZ_CASE(8)
      RZ_CASE(9)
      RZ_CASE(10)
      RZ_CASE(11)
      RZ_CASE(12)
#endif
    }
#undef RZ_CASE
  }
};

}  // namespace RZ_ISA
