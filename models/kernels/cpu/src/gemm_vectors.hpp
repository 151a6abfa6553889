// The products of rows with one pair of panels, on vector registers.
//
// Where the instruction set has products of bf16 and int8 (AVX512-BF16, VNNI), rows and panels are multiplied as they
// lie. Elsewhere a row's elements are widened once for all panels, so that one of them is multiplied with a vector of
// weights from where it lies, and weights are widened in registers, for all rows of a block: bf16 to float, and int8 to
// int16, two of which are multiplied and added at once.
#pragma once

#include "gemm_panels.hpp"

#include <type_traits>

namespace RZ_ISA {

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

#if !defined(__AVX512BF16__)
typedef int16_t vp __attribute__((vector_size(4 * W)));  // pairs

// How a kind is multiplied without instructions of its own. Element: what x is widened to; Part: what a vector of
// weights is widened to, in two stages; Sum: of products with them.
template <class Kind>
struct Widened;

template <>
struct Widened<Bf16> {
  typedef float Element;
  typedef vf Part, Sum;
  static void widen(const bf16* from, int64_t count, float* to) {
    for (int64_t i = 0; i < count; i += W) store(to + i, load(from + i));
  }
  static Part part(vu weights, int stage) { return (vf)(stage ? weights & 0xffff0000u : weights << 16); }
  static Part spread(const float* x, int stage) { return splat(x[stage]); }
  static Sum add(Sum sum, Part x, Part weights) { return sum + x * weights; }
};

template <>
struct Widened<Int8> {
  typedef int16_t Element;
  typedef vp Part;
  typedef vs Sum;
  // Of four, the first and the third, then the second and the fourth: in the order of the weights' stages.
  static void widen(const int8_t* from, int64_t count, int16_t* to) {
    for (int64_t i = 0; i < count; i += 4)
      for (int64_t j = 0; j < 4; j++) to[i + j] = from[i + (j % 2 * 2 + j / 2)];
  }
  static Part part(vu weights, int stage) { return (stage ? (vp)weights : (vp)weights << 8) >> 8; }
  static Part spread(const int16_t* x, int stage) {
    int32_t pair;
    std::memcpy(&pair, x + 2 * stage, sizeof pair);
    return (vp)(vs{} + pair);
  }
  static Sum add(Sum sum, Part a, Part b) {
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
};

// One after the other: GCC would take many at once, for which there are no registers.
template <class V>
inline V in_order(V v) {
#if defined(__AVX2__) && !defined(RZ_EMULATED)
  asm volatile("" : "+v"(v));
#endif
  return v;
}

template <class Kind, int ROWS>
static void multiply(const typename Widened<Kind>::Element* x, int64_t stride, const typename Kind::Element* panels,
                     int64_t padded, Fetch fetch, typename Kind::Accumulator* products) {
  typedef Widened<Kind> How;
  typename How::Sum sums[ROWS][VECTORS] = {};
  for (int64_t k = 0; k < padded; k += Kind::GROUP) {
    if (k % line<Kind>() == 0) fetch.some();
    for (int stage = 0; stage < 2; stage++) {
      typename How::Part weights[VECTORS];
      for (int v = 0; v < VECTORS; v++) {
        vu lanes;
        const int64_t panel = v * W / PANEL, lane = v * W % PANEL;
        std::memcpy(&lanes, panels + panel * padded * PANEL + k * PANEL + lane * Kind::GROUP, sizeof lanes);
        weights[v] = How::part(lanes, stage);
      }
      for (int row = 0; row < ROWS; row++) {
        const typename How::Part value = in_order(How::spread(x + row * stride + k, stage));
        for (int v = 0; v < VECTORS; v++) sums[row][v] = in_order(How::add(sums[row][v], value, weights[v]));
      }
    }
  }
  for (int row = 0; row < ROWS; row++)
    for (int v = 0; v < VECTORS; v++) std::memcpy(products + row * PAIR + v * W, &sums[row][v], sizeof sums[row][v]);
}
#else
template <class Kind>
struct Widened {
  typedef typename Kind::Element Element;
};

template <class Kind, int ROWS>
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

template <class Kind, int ROWS>
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
        multiply<Kind, ROWS>(rows + first * stride, stride, panels + panel * padded * PANEL, padded, fetch,
                             products + panel * PANEL);
    } else if constexpr (ROWS > 1) {
      multiply_block<ROWS - 1>(first, count, panels, padded, fetch, products);
    }
  }

 public:
  static constexpr int64_t BYTES = sizeof(Wide);  // of an element, while it is multiplied

  // Those that are multiplied from now on: `count` of them, each `padded` long.
  void begin(const Element* x, int64_t x_stride, int64_t count, int64_t padded) {
    if constexpr (!std::is_same_v<Wide, Element>) {
      // By every thread for itself: it is little beside the products, and none has to wait.
      static thread_local Aligned memory;
      Wide* wide = (Wide*)memory.of(count * padded * sizeof(Wide));
      for (int64_t row = 0; row < count; row++) Widened<Kind>::widen(x + row * x_stride, padded, wide + row * padded);
      rows = wide, stride = padded;
    } else {
      rows = x, stride = x_stride;
    }
  }

  // `count` of them from `first` on.
  template <class Other>
  void operator()(int64_t first, int64_t count, const Element* panels, int64_t padded, Fetch fetch,
                  Accumulator* products, Other&) const {
    multiply_block<BLOCK>(first, count, panels, padded, fetch, products);
  }
};

}  // namespace RZ_ISA
