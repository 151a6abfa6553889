// The products of rows with one pair of panels, on vector registers.
//
// Where the instruction set has products of bf16 and int8 (AVX512-BF16, VNNI), rows and panels are multiplied as they
// lie. Elsewhere a row's elements are widened once for all panels, so that one of them is multiplied with a whole vector
// of weights from where it lies, and weights are widened in registers, for all rows of a block: bf16 to float, and int8
// to int16, two of which are multiplied and added at once.
#pragma once

#include "gemm_panels.hpp"

namespace RZ_ISA {

#if defined(__AVX512BF16__)
constexpr bool WIDENS = false;
#else
constexpr bool WIDENS = true;
#endif

// Rows whose sums stay in registers, AT_ONCE panels wide.
#if defined(__AVX512F__)
constexpr int64_t BLOCK = 12, AT_ONCE = 2;
#elif defined(__AVX2__)
constexpr int64_t BLOCK = 6, AT_ONCE = 1;
#else
constexpr int64_t BLOCK = 4, AT_ONCE = 1;
#endif

constexpr int VECTORS = AT_ONCE * PANEL / W;

// Blocks of about one size: a block of few rows reads the panels for little.
static int64_t next_block(int64_t rows) {
  const int64_t blocks = (rows + BLOCK - 1) / BLOCK;
  return (rows + blocks - 1) / blocks;
}

typedef int32_t vs __attribute__((vector_size(4 * W)));
typedef int16_t vp __attribute__((vector_size(4 * W)));  // pairs

// One after the other: GCC would take many at once, for which there are no registers.
template <class V>
inline V in_order(V v) {
#if defined(__AVX2__)
  asm volatile("" : "+v"(v));
#endif
  return v;
}

template <class Kind>
struct Widened {
  typedef typename Kind::Element Element;
};
#if !defined(__AVX512BF16__)
template <>
struct Widened<Bf16> {
  typedef float Element;
};
template <>
struct Widened<Int8> {
  typedef int16_t Element;
};

static void widen(const bf16* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += W) store(to + i, load(from + i));
}

// Of four, the first and the third, then the second and the fourth: in this order the halves of the weights' 16 bits are.
static void widen(const int8_t* from, int64_t count, int16_t* to) {
  for (int64_t i = 0; i < count; i += 4)
    for (int64_t j = 0; j < 4; j++) to[i + j] = from[i + (j % 2 * 2 + j / 2)];
}

// sum + the products of pairs, of which each lane has one.
static vs add_products(vs sum, vp a, vp b) {
#if defined(__AVX512BW__)
  return sum + (vs)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return sum + (vs)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return sum + (vs)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  return sum + ((vs)a << 16 >> 16) * ((vs)b << 16 >> 16) + ((vs)a >> 16) * ((vs)b >> 16);
#endif
}

template <int ROWS>
static void multiply(const float* x, int64_t stride, const bf16* panels, int64_t padded, Fetch fetch, float* products) {
  vf sums[ROWS][VECTORS] = {};
  for (int64_t k = 0; k < padded; k += 2) {
    if (k % line<Bf16>() == 0) fetch.some();
    for (int64_t i = 0; i < 2; i++) {
      vf weights[VECTORS];
      for (int v = 0; v < VECTORS; v++) {
        vu pairs;
        std::memcpy(&pairs, panels + (v * W / PANEL) * padded * PANEL + k * PANEL + v * W % PANEL * 2, sizeof pairs);
        weights[v] = (vf)(i ? pairs & 0xffff0000u : pairs << 16);
      }
      for (int row = 0; row < ROWS; row++) {
        const vf value = in_order(splat(x[row * stride + k + i]));
        for (int v = 0; v < VECTORS; v++) sums[row][v] = in_order(sums[row][v] + weights[v] * value);
      }
    }
  }
  for (int row = 0; row < ROWS; row++)
    for (int v = 0; v < VECTORS; v++) store(products + row * PAIR + v * W, sums[row][v]);
}

template <int ROWS>
static void multiply(const int16_t* x, int64_t stride, const int8_t* panels, int64_t padded, Fetch fetch,
                     int32_t* products) {
  vs sums[ROWS][VECTORS] = {};
  for (int64_t k = 0; k < padded; k += 4) {
    if (k % line<Int8>() == 0) fetch.some();
    for (int64_t i = 0; i < 2; i++) {
      vp weights[VECTORS];
      for (int v = 0; v < VECTORS; v++) {
        vp pairs;
        std::memcpy(&pairs, panels + (v * W / PANEL) * padded * PANEL + k * PANEL + v * W % PANEL * 4, sizeof pairs);
        weights[v] = (i ? pairs : pairs << 8) >> 8;
      }
      for (int row = 0; row < ROWS; row++) {
        int32_t pair;
        std::memcpy(&pair, x + row * stride + k + 2 * i, 4);
        const vp pair_everywhere = in_order((vp)(vs{} + pair));
        for (int v = 0; v < VECTORS; v++) sums[row][v] = in_order(add_products(sums[row][v], pair_everywhere, weights[v]));
      }
    }
  }
  for (int row = 0; row < ROWS; row++)
    for (int v = 0; v < VECTORS; v++) std::memcpy(products + row * PAIR + v * W, &sums[row][v], sizeof(vs));
}
#else
template <int ROWS>
static void multiply(const bf16* x, int64_t stride, const bf16* panels, int64_t padded, Fetch, float* products) {
  vf sums[ROWS][VECTORS] = {};
  for (int64_t k = 0; k < padded; k += 2)
    for (int v = 0; v < VECTORS; v++) {
      const __m512bh pairs = (__m512bh)_mm512_loadu_si512(panels + v * padded * PANEL + k * PANEL);
      for (int row = 0; row < ROWS; row++) {
        int32_t pair;
        std::memcpy(&pair, x + row * stride + k, 4);
        sums[row][v] = (vf)_mm512_dpbf16_ps((__m512)sums[row][v], (__m512bh)_mm512_set1_epi32(pair), pairs);
      }
    }
  for (int row = 0; row < ROWS; row++)
    for (int v = 0; v < VECTORS; v++) store(products + row * PAIR + v * W, sums[row][v]);
}

template <int ROWS>
static void multiply(const int8_t* x, int64_t stride, const int8_t* panels, int64_t padded, Fetch, int32_t* products) {
  vs sums[ROWS][VECTORS] = {};
  vs columns[VECTORS] = {};  // sums over the weights of a column: x is taken as x + 128, which this makes good
  for (int64_t k = 0; k < padded; k += 4)
    for (int v = 0; v < VECTORS; v++) {
      const __m512i groups = _mm512_loadu_si512(panels + v * padded * PANEL + k * PANEL);
      columns[v] = (vs)_mm512_dpbusd_epi32((__m512i)columns[v], _mm512_set1_epi8(1), groups);
      for (int row = 0; row < ROWS; row++) {
        int32_t group;
        std::memcpy(&group, x + row * stride + k, 4);
        const __m512i shifted = _mm512_set1_epi32(group ^ int32_t(0x80808080));
        sums[row][v] = (vs)_mm512_dpbusd_epi32((__m512i)sums[row][v], shifted, groups);
      }
    }
  for (int row = 0; row < ROWS; row++)
    for (int v = 0; v < VECTORS; v++) {
      const vs result = sums[row][v] - columns[v] * 128;
      std::memcpy(products + row * PAIR + v * W, &result, sizeof result);
    }
}
#endif

template <class Kind>
class Rows {
  typedef typename Kind::Element Element;
  typedef typename Widened<Kind>::Element Wide;
  typedef typename Kind::Accumulator Accumulator;

  const Wide* rows = nullptr;
  int64_t stride = 0;

  template <int ROWS>
  void multiply_block(int64_t first, int64_t count, const Element* panels, int64_t padded, Fetch fetch,
                      Accumulator* products) const {
    if (count == ROWS) {
      for (int64_t panel = 0; panel < PAIR / PANEL; panel += AT_ONCE, fetch.lines = 0)
        multiply<ROWS>(rows + first * stride, stride, panels + panel * padded * PANEL, padded, fetch,
                       products + panel * PANEL);
    } else if constexpr (ROWS > 1) {
      multiply_block<ROWS - 1>(first, count, panels, padded, fetch, products);
    }
  }

 public:
  static constexpr int64_t BYTES = sizeof(Wide);  // of an element, while it is multiplied

  // Those that are multiplied from now on: `count` of them, each `padded` long.
  void begin(const Element* x, int64_t x_stride, int64_t count, int64_t padded) {
    if constexpr (WIDENS) {
      // By every thread for itself: it is little beside the products, and none has to wait.
      static thread_local Aligned memory;
      Wide* wide = (Wide*)memory.of(count * padded * sizeof(Wide));
      for (int64_t row = 0; row < count; row++) widen(x + row * x_stride, padded, wide + row * padded);
      rows = wide, stride = padded;
    } else {
      rows = x, stride = x_stride;
    }
  }

  // `count` of them from `first` on.
  template <class Other>
  void operator()(int64_t first, int64_t count, const Element* panels, int64_t padded, Fetch fetch, Accumulator* products,
                  Other&) const {
    multiply_block<BLOCK>(first, count, panels, padded, fetch, products);
  }
};

}  // namespace RZ_ISA
