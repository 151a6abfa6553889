// Vectors of floats as wide as the instruction set has them, with bf16 as a storage type.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace RZ_ISA {

struct bf16 {
  uint16_t bits;
};

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float vf __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));
typedef uint16_t vh __attribute__((vector_size(2 * W)));

inline vf splat(float x) { return x - vf{}; }  // not added to zeros, which would make 0 of -0

inline vf load(const float* p) {
  vf v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }

inline vf load(const bf16* p) {
  vh h;
  std::memcpy(&h, p, sizeof h);
  return (vf)(__builtin_convertvector(h, vu) << 16);
}

// The bits of numbers rounded to bf16, to nearest, ties to even, as torch does. For sums of bf16 numbers: a NaN among
// those has no low bits whose carry would make it something else.
inline vu rounded_sum(vf v) {
  const vu u = (vu)v;
  return (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}

// The same for all numbers; a NaN stays one.
inline vu rounded(vf v) { return v != v ? vu{} + 0x7fc0 : rounded_sum(v); }

inline void store(bf16* p, vf v) {
#if defined(__AVX512BF16__)
  const __m256bh h = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &h, sizeof h);
#else
  const vh h = __builtin_convertvector(rounded(v), vh);
  std::memcpy(p, &h, sizeof h);
#endif
}

// Twice as many numbers at once, in an order that only these functions know: for what is done to each by itself.
struct Pair {
  vf a, b;
};

template <class T>
inline Pair load_pair(const T* p) {
  return {load(p), load(p + W)};
}

template <class T>
inline void store_pair(T* p, Pair v) {
  store(p, v.a), store(p + W, v.b);
}

// For a sum of numbers of the type that is stored.
template <class T>
inline void store_sum(T* p, Pair v) {
  store_pair(p, v);
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// Within each half of a register, which takes a third of the instructions that the order of memory takes.
inline Pair load_pair(const bf16* p) {
  const __m256i zero = _mm256_setzero_si256(), both = _mm256_loadu_si256((const __m256i*)p);
  return {(vf)_mm256_unpacklo_epi16(zero, both), (vf)_mm256_unpackhi_epi16(zero, both)};
}

inline void store_pair(bf16* p, Pair v) {
  _mm256_storeu_si256((__m256i*)p, _mm256_packus_epi32((__m256i)rounded(v.a), (__m256i)rounded(v.b)));
}

inline void store_sum(bf16* p, Pair v) {
  _mm256_storeu_si256((__m256i*)p, _mm256_packus_epi32((__m256i)rounded_sum(v.a), (__m256i)rounded_sum(v.b)));
}
#endif

inline float load1(const float* p) { return *p; }
inline void store1(float* p, float x) { *p = x; }

inline float load1(const bf16* p) {
  const uint32_t u = uint32_t(p->bits) << 16;
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

inline void store1(bf16* p, float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  p->bits = x != x ? 0x7fc0 : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

inline float sum(vf v) {
  float lanes[W], total = 0;
  store(lanes, v);
  for (int i = 0; i < W; i++) total += lanes[i];
  return total;
}

inline vf maximum(vf a, vf b) { return a > b ? a : b; }

// e^x within 2 units of the last place from -87 to 88, after Cephes' expf: x = n ln 2 + r, |r| <= ln 2 / 2.
inline vf exponential(vf x) {
  x = x < -87.0f ? splat(-87.0f) : x;  // a NaN passes
  x = x > 88.0f ? splat(88.0f) : x;
  const vf n = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the integer is in the low bits
  const vu shift = ((vu)n - 0x4b400000u) << 23;
  const vf whole = n - 12582912.0f;
  const vf r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  vf p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return (vf)((vu)p + shift);
}

}  // namespace RZ_ISA
