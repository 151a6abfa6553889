// The inner loops of attention: a few rows (of queries, or of weights) times a tile of packed keys or values.
//
// A packed tile has 16 columns a run: lanes of a vector are keys while scores are computed, and elements of the head
// while values are weighted, so nothing is ever summed across lanes. Its unit is one float, or two bf16 that meet two
// consecutive elements of a row: neighbours within the head for keys, neighbouring tokens for values.
#pragma once

#include <type_traits>

#include "aligned.hpp"
#include "simd.hpp"

namespace RZ_ISA {

constexpr int GROUP = 16;    // columns that lie together in memory
constexpr int SUBTILE = 16;  // rows that are computed together
constexpr int TILE = 256;    // keys between two adjustments of the greatest score

// Across lanes, in halves: a fixed order, and few steps. All in registers: GCC would keep what is taken apart in memory,
// and a sum from its beginning.
template <class Join>
inline float join_lanes(vf v, Join join) {
#if defined(__AVX512F__)
  const __m256 half = join(_mm512_maskz_extractf32x8_ps(0xff, (__m512)v, 0),
                           _mm512_maskz_extractf32x8_ps(0xff, (__m512)v, 1));
#elif defined(__AVX2__)
  const __m256 half = (__m256)v;
#endif
#if defined(__AVX2__)
  const __m128 four = join(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#else
  const vf four = v;
#endif
  return join(join(four[0], four[2]), join(four[1], four[3]));
}

inline float total_of(vf v) {
  return join_lanes(v, [](auto a, auto b) { return a + b; });
}

inline float greatest_of(vf v) {
  return join_lanes(v, [](auto a, auto b) { return a > b ? a : b; });
}

// 2^x, 0 below -126: within 2e-7 of it, or 3e-6 where the result is rounded to bf16. A NaN stays one.
template <bool precise>
inline vf exponential2(vf x) {
#if defined(__AVX512F__)
  // A result too small for a normal number would take the processor a hundred times as long. (With masks of all ones,
  // since GCC 12 warns of the plain functions' own code.)
  const __mmask16 counts = _mm512_cmp_ps_mask((__m512)x, (__m512)splat(-126.0f), _CMP_NLT_UQ);
  x = (vf)_mm512_maskz_max_ps(0xffff, (__m512)splat(-126.0f), (__m512)x);  // the second if one of them is a NaN
  const vf n = (vf)_mm512_maskz_roundscale_ps(0xffff, (__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const vu is_zero = (vu)(x < -126.0f);
  x = x < -126.0f ? splat(-126.0f) : x;
  const vf shifted = x + 12582912.0f;  // 1.5 * 2^23: the integer is in the low bits
  const vf n = shifted - 12582912.0f;
#endif
  const vf f = x - n;
  vf p;  // least greatest error on [-0.5, 0.5]
  if (precise) {
    p = splat(1.326470891e-3f);
    p = p * f + 9.671512274e-3f;
    p = p * f + 5.550733786e-2f;
    p = p * f + 2.402224209e-1f;
    p = p * f + 6.931469776e-1f;
  } else {
    p = splat(9.582836096e-3f);
    p = p * f + 5.590641954e-2f;
    p = p * f + 2.402409890e-1f;
    p = p * f + 6.931241934e-1f;
  }
  p = p * f + 1.0f;
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_scalef_ps(counts, (__m512)p, (__m512)n);
#else
  const vf scaled = (vf)((vu)p + (((vu)shifted - 0x4b400000u) << 23));
  return (vf)((vu)scaled & ~is_zero);
#endif
}

// How elements of type T are multiplied. Row: what rows are made of; Unit: what packed tiles are made of; K: elements
// of a row that meet one unit, in so many stages; Part: what a vector of units is in one stage.
template <class T>
struct Product;

template <>
struct Product<float> {
  typedef float Row;
  typedef float Unit;
  typedef vf Part;
  static constexpr int K = 1, STAGES = 1;
  static constexpr bool precise = true;
  static Part part(const float* p, int, bool) { return load(p); }
  static vf add(vf sum, const float* row, Part part, int) { return sum + row[0] * part; }
};

template <>
struct Product<bf16> {
  typedef uint32_t Unit;
  static constexpr int K = 2;
  static constexpr bool precise = false;
  // `is_first_only`: without the second of each two, which need not be a number.
#if defined(__AVX512BF16__)
  typedef bf16 Row;
  typedef __m512i Part;
  static constexpr int STAGES = 1;
  static Part part(const uint32_t* p, int, bool is_first_only) {
    const __m512i units = _mm512_loadu_si512(p);
    return is_first_only ? _mm512_and_si512(units, _mm512_set1_epi32(0xffff)) : units;
  }
  static vf add(vf sum, const bf16* row, Part part, int) {
    int32_t two;
    std::memcpy(&two, row, 4);
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(two), (__m512bh)part);
  }
#else
  typedef float Row;
  typedef vf Part;
  static constexpr int STAGES = 2;
  static Part part(const uint32_t* p, int stage, bool is_first_only) {
    vu units;
    std::memcpy(&units, p, sizeof units);
    return (vf)(stage == 0 ? units << 16 : is_first_only ? vu{} : units & 0xffff0000u);
  }
  static vf add(vf sum, const float* row, Part part, int stage) { return sum + row[stage] * part; }
#endif
};

// Asks for the line `ahead` units after that of vector `c`, if anything is there; once for all vectors of a line.
template <class Unit>
inline void fetch_line_ahead(const Unit* vector, int c, int64_t ahead) {
  if (ahead && c * W % 16 == 0) __builtin_prefetch(vector + ahead, 0, 2);
}

// scores[r][c] = rows[r] . keys[c] for C vectors of keys; columns[c] is where a vector's first unit lies.
template <class T, int R, int C>
static void score(const typename Product<T>::Row* rows, int64_t row_stride,
                  const typename Product<T>::Unit* const* columns, int64_t stride, int64_t steps, int64_t ahead,
                  float* scores, int64_t score_stride) {
  typedef Product<T> P;
  vf sums[R][C] = {};
  for (int64_t step = 0; step < steps; step++)
    for (int stage = 0; stage < P::STAGES; stage++) {
      typename P::Part keys[C];
      for (int c = 0; c < C; c++) {
        keys[c] = P::part(columns[c] + step * stride, stage, false);
        if (stage == 0) fetch_line_ahead(columns[c] + step * stride, c, ahead);
      }
      for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++)
          sums[r][c] = P::add(sums[r][c], rows + r * row_stride + step * P::K, keys[c], stage);
    }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) store(scores + r * score_stride + c * W, sums[r][c]);
}

// sums[r][c] += weights[r] . values for C vectors of elements; groups[g] is where 16 tokens' values lie, of which the
// last has `num_keys` modulo 16.
template <class T, int R, int C>
static void weigh(const typename Product<T>::Row* weights, int64_t weight_stride,
                  const typename Product<T>::Unit* const* groups, int64_t stride, int64_t num_keys, int64_t ahead,
                  float* out, int64_t out_stride) {
  typedef Product<T> P;
  vf sums[R][C];
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) sums[r][c] = load(out + r * out_stride + c * W);
  for (int64_t key = 0; key < num_keys; key += GROUP) {
    const int64_t n = num_keys - key < GROUP ? num_keys - key : GROUP;
    for (int64_t step = 0; step < (n + P::K - 1) / P::K; step++)
      for (int stage = 0; stage < P::STAGES; stage++) {
        const typename P::Unit* from = groups[key / GROUP] + step * stride;
        typename P::Part values[C];
        for (int c = 0; c < C; c++) {
          values[c] = P::part(from + c * W, stage, P::K > 1 && (step + 1) * P::K > n);
          if (stage == 0) fetch_line_ahead(from + c * W, c, ahead);
        }
        for (int r = 0; r < R; r++)
          for (int c = 0; c < C; c++)
            sums[r][c] = P::add(sums[r][c], weights + r * weight_stride + key + step * P::K, values[c], stage);
      }
  }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) store(out + r * out_stride + c * W, sums[r][c]);
}

// As many rows, and vectors for so many rows, as there are registers for; at least as many sums as are under way.
constexpr int ROWS = 4;
template <int R>
constexpr int vectors() {
  return W == 16 ? (R == 1 ? 8 : 4) : 8 / R;
}

template <class T, int R, int C = vectors<R>()>
static void score_columns(const typename Product<T>::Row* rows, int64_t row_stride,
                          const typename Product<T>::Unit* const* columns, int64_t num_columns, int64_t stride,
                          int64_t steps, int64_t ahead, float* scores, int64_t score_stride) {
  int64_t c = 0;
  for (; c + C <= num_columns; c += C)
    score<T, R, C>(rows, row_stride, columns + c, stride, steps, ahead, scores + c * W, score_stride);
  if constexpr (C > 1)
    if (c < num_columns)
      score_columns<T, R, C / 2>(rows, row_stride, columns + c, num_columns - c, stride, steps, ahead, scores + c * W,
                                 score_stride);
}

// Rows from `r` on, N at a time, then half as many.
template <int N = ROWS, class Do>
static void by_rows(int64_t r, int64_t num_rows, Do&& compute) {
  for (; r + N <= num_rows; r += N) compute(std::integral_constant<int, N>(), r);
  if constexpr (N > 1) by_rows<N / 2>(r, num_rows, compute);
}

// scores[rows][columns], the columns W at a time. `ahead`: units to the keys that are read next, or 0.
template <class T>
static void score_tile(int64_t num_rows, const typename Product<T>::Row* rows, int64_t row_stride,
                       const typename Product<T>::Unit* const* columns, int64_t num_columns, int64_t stride,
                       int64_t steps, int64_t ahead, float* scores, int64_t score_stride) {
  by_rows(0, num_rows, [&](auto count, int64_t r) {
    score_columns<T, count>(rows + r * row_stride, row_stride, columns, num_columns, stride, steps, r ? 0 : ahead,
                            scores + r * score_stride, score_stride);
  });
}

template <class T, int R, int C = vectors<R>()>
static void weigh_columns(const typename Product<T>::Row* weights, int64_t weight_stride,
                          const typename Product<T>::Unit* const* groups, int64_t first, int64_t stride,
                          int64_t num_keys, int64_t ahead, float* out, int64_t out_stride) {
  const typename Product<T>::Unit* moved[TILE / GROUP];
  for (; first + C * W <= stride; first += C * W) {
    for (int64_t g = 0; g * GROUP < num_keys; g++) moved[g] = groups[g] + first;
    weigh<T, R, C>(weights, weight_stride, moved, stride, num_keys, ahead, out + first, out_stride);
  }
  if constexpr (C > 1)
    if (first < stride)
      weigh_columns<T, R, C / 2>(weights, weight_stride, groups, first, stride, num_keys, ahead, out, out_stride);
}

// out[rows][stride] += weights[rows][num_keys] times the values of those keys; a token has `stride` elements.
template <class T>
static void weigh_tile(int64_t num_rows, const typename Product<T>::Row* weights, int64_t weight_stride,
                       const typename Product<T>::Unit* const* groups, int64_t stride, int64_t num_keys, int64_t ahead,
                       float* out, int64_t out_stride) {
  by_rows(0, num_rows, [&](auto count, int64_t r) {
    weigh_columns<T, count>(weights + r * weight_stride, weight_stride, groups, 0, stride, num_keys, r ? 0 : ahead,
                            out + r * out_stride, out_stride);
  });
}

}  // namespace RZ_ISA
