// The products of rows with one pair of panels, on vector registers.
//
// Where the instruction set has products of bf16 and int8 (AVX512-BF16, VNNI), a lane takes a group of both at once.
// Elsewhere a row's elements are widened once for all panels, so that one of them is multiplied with a vector of
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

// Lines of the next panels that are fetched with each line of inputs: as many as one holds.
constexpr int64_t MOST_FETCHED = PAIR;
// A single block of rows reads panels as fast as they come from memory: they are fetched so many bytes ahead instead.
constexpr int64_t AHEAD = 4096;

typedef int32_t vs __attribute__((vector_size(4 * W)));

// How rows and panels of a kind are multiplied. Element: what x is converted to, once for all panels; Part: what a
// vector of weights is converted to, in so many stages; Sum: of products with them, which starts with what `start`
// says, given the sums over each output's weights (int8 alone).
template <class Kind>
struct Multiplying;

#if defined(__AVX512BF16__)
// A lane's worth of x in every lane.
template <class Element>
inline vu spread_group(const Element* x) {
  uint32_t group;
  std::memcpy(&group, x, sizeof group);
  return vu{} + group;
}

template <>
struct Multiplying<Bf16> {
  typedef bf16 Element;
  typedef vu Part;
  typedef vf Sum;
  static constexpr int STAGES = 1;
  static void convert(const bf16* from, int64_t count, bf16* to) { std::memcpy(to, from, count * sizeof *to); }
  static Sum start(const int32_t*) { return Sum{}; }
  static Part part(vu weights, int) { return weights; }
  static Part spread(const bf16* x, int) { return spread_group(x); }
  static Sum add(Sum sum, Part x, Part weights) {
    return (Sum)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)weights);
  }
};

// One of the two must be unsigned: x is taken as x + 128, which sums make good by what they start with.
template <>
struct Multiplying<Int8> {
  typedef uint8_t Element;
  typedef vu Part;
  typedef vs Sum;
  static constexpr int STAGES = 1;
  static void convert(const int8_t* from, int64_t count, uint8_t* to) {
    for (int64_t i = 0; i < count; i++) to[i] = uint8_t(from[i]) ^ 0x80;
  }
  static Sum start(const int32_t* weight_sums) {
    vs v;
    std::memcpy(&v, weight_sums, sizeof v);
    return v * -128;
  }
  static Part part(vu weights, int) { return weights; }
  static Part spread(const uint8_t* x, int) { return spread_group(x); }
  static Sum add(Sum sum, Part x, Part weights) {
    return (Sum)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)weights);
  }
};
#else
typedef int16_t vp __attribute__((vector_size(4 * W)));  // pairs

template <>
struct Multiplying<Bf16> {
  typedef float Element;
  typedef vf Part, Sum;
  static constexpr int STAGES = 2;
  static void convert(const bf16* from, int64_t count, float* to) {
    for (int64_t i = 0; i < count; i += W) store(to + i, load(from + i));
  }
  static Sum start(const int32_t*) { return Sum{}; }
  static Part part(vu weights, int stage) { return (vf)(stage ? weights & 0xffff0000u : weights << 16); }
  static Part spread(const float* x, int stage) { return splat(x[stage]); }
  static Sum add(Sum sum, Part x, Part weights) { return sum + x * weights; }
};

template <>
struct Multiplying<Int8> {
  typedef int16_t Element;
  typedef vp Part;
  typedef vs Sum;
  static constexpr int STAGES = 2;
  // Of four, the first and the third, then the second and the fourth: in the order of the weights' stages.
  static void convert(const int8_t* from, int64_t count, int16_t* to) {
    for (int64_t i = 0; i < count; i += 4)
      for (int64_t j = 0; j < 4; j++) to[i + j] = from[i + (j % 2 * 2 + j / 2)];
  }
  static Sum start(const int32_t*) { return Sum{}; }
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
#endif

// One after the other: GCC would take many at once, for which there are no registers.
template <class V>
inline V in_order(V v) {
#if defined(__AVX2__) && !defined(RZ_EMULATED)
  asm volatile("" : "+v"(v));
#endif
  return v;
}

// The same pointer, of which the compiler knows no more.
template <class T>
inline const T* opaque(const T* p) {
#if defined(__GNUC__) && !defined(RZ_EMULATED)
  asm volatile("" : "+r"(p));
#endif
  return p;
}

template <class Kind>
inline vu weights_at(const typename Kind::Element* panels, int64_t padded, int v) {
  vu lanes;
  const int64_t panel = v * W / PANEL, lane = v * W % PANEL;
  std::memcpy(&lanes, panels + panel * padded * PANEL + lane * Kind::GROUP, sizeof lanes);
  return lanes;
}

template <class Kind, int ROWS>
static void multiply(const typename Multiplying<Kind>::Element* x, int64_t stride, const typename Kind::Element* panels,
                     int64_t padded, const int32_t* weight_sums, Fetch fetch, typename Kind::Accumulator* products) {
  typedef Multiplying<Kind> How;
  typename How::Sum sums[ROWS][VECTORS];
  for (int v = 0; v < VECTORS; v++) sums[0][v] = How::start(weight_sums + v * W);
  for (int row = 1; row < ROWS; row++)
    for (int v = 0; v < VECTORS; v++) sums[row][v] = sums[0][v];
  // Where rows are many, each third has a pointer of its own, from which others are a stride or two away: for a pointer
  // to each there are not registers enough.
  constexpr int NEAR = ROWS > 8 ? 3 : ROWS;
  const typename How::Element* near[(ROWS + NEAR - 1) / NEAR];
  for (int row = 0; row < ROWS; row += NEAR) near[row / NEAR] = x + row * stride;
  for (int64_t k = 0; k < padded; k += Kind::GROUP) {
    if (fetch.ahead) {
      for (int64_t panel = 0; panel < AT_ONCE; panel++)
        __builtin_prefetch((const char*)(panels + panel * padded * PANEL + k * PANEL) + fetch.ahead, 0, 2);
    } else if (k % line<Kind>() == 0) {
      fetch.some();
    }
    if (NEAR < ROWS)
      for (auto& each : near) each = opaque(each);
    for (int stage = 0; stage < How::STAGES; stage++) {
      typename How::Part weights[VECTORS];
      for (int v = 0; v < VECTORS; v++) weights[v] = How::part(weights_at<Kind>(panels + k * PANEL, padded, v), stage);
      for (int row = 0; row < ROWS; row++) {
        const typename How::Part value = in_order(How::spread(near[row / NEAR] + row % NEAR * stride + k, stage));
        for (int v = 0; v < VECTORS; v++) sums[row][v] = in_order(How::add(sums[row][v], value, weights[v]));
      }
    }
  }
  for (int row = 0; row < ROWS; row++)
    for (int v = 0; v < VECTORS; v++) std::memcpy(products + row * PAIR + v * W, &sums[row][v], sizeof sums[row][v]);
}

template <class Kind>
class Rows {
  typedef Multiplying<Kind> How;
  typedef typename Kind::Element Element;
  typedef typename How::Element Converted;
  typedef typename Kind::Accumulator Accumulator;

  // Rows whose distance is a multiple of this would share few sets of the first-level cache.
  static constexpr int64_t ALIASING_BYTES = 2048;

  const Converted* rows = nullptr;
  int64_t stride = 0;

  template <int ROWS>
  void multiply_block(int64_t first, int64_t count, const Element* panels, int64_t padded,
                      const int32_t* weight_sums, Fetch fetch, Accumulator* products) const {
    if (count == ROWS) {
      for (int64_t panel = 0; panel < PAIR / PANEL; panel += AT_ONCE, fetch.lines = 0)
        multiply<Kind, ROWS>(rows + first * stride, stride, panels + panel * padded * PANEL, padded,
                             weight_sums + panel * PANEL, fetch, products + panel * PANEL);
    } else if constexpr (ROWS > 1) {
      multiply_block<ROWS - 1>(first, count, panels, padded, weight_sums, fetch, products);
    }
  }

 public:
  static constexpr int64_t BYTES = sizeof(Converted);  // of an element, while it is multiplied

  // Those that are multiplied from now on: `count` of them, each `padded` long.
  void begin(const Element* x, int64_t x_stride, int64_t count, int64_t padded) {
    if constexpr (std::is_same_v<Converted, Element>)
      if (count == 1 || x_stride * int64_t(sizeof *x) % ALIASING_BYTES) {
        rows = x, stride = x_stride;
        return;
      }
    // By every thread for itself: it is little beside the products, and none has to wait.
    static thread_local Aligned memory;
    stride = padded + (padded * int64_t(sizeof(Converted)) % ALIASING_BYTES ? 0 : 64 / sizeof(Converted));
    Converted* converted = (Converted*)memory.of(count * stride * sizeof(Converted));
    for (int64_t row = 0; row < count; row++) How::convert(x + row * x_stride, padded, converted + row * stride);
    rows = converted;
  }

  // `count` of them from `first` on.
  template <class Other>
  void operator()(int64_t first, int64_t count, const Element* panels, int64_t padded, const int32_t* weight_sums,
                  Fetch fetch, Accumulator* products, Other&) const {
    multiply_block<BLOCK>(first, count, panels, padded, weight_sums, fetch, products);
  }
};

}  // namespace RZ_ISA
