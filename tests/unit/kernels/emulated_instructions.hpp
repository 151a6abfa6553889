// AVX512's and AMX's instructions as plain functions, for `make emulate`: the kernels of machines that have them, run on
// one that has not. Included before a kernel that is compiled for AVX2; RZ_EMULATED says how much the machine is to have:
// 1 for AVX512, 2 for its bfloat16 as well, 3 for AMX. What computes on denormal numbers rounds otherwise than hardware.
// An operand that hardware would refuse, such as an address that is not aligned, ends the process.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <immintrin.h>

#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512VL__ 1
#define __AVX512DQ__ 1
#if RZ_EMULATED >= 2
#define __AVX512BF16__ 1
#define __AVX512VNNI__ 1
#endif
#if RZ_EMULATED >= 3
#define __AMX_TILE__ 1
#define __AMX_BF16__ 1
#define __AMX_INT8__ 1
#endif

namespace emulated {

// A register as an array of its parts.
template <class Part, int Bytes = 64>
struct Parts {
  static constexpr int COUNT = Bytes / sizeof(Part);
  Part parts[COUNT];

  template <class Register>
  static Parts of(const Register& from) {
    static_assert(sizeof from == Bytes);
    Parts result;
    std::memcpy(result.parts, &from, Bytes);
    return result;
  }

  template <class Register>
  Register as() const {
    static_assert(sizeof(Register) == Bytes);
    Register result;
    std::memcpy(&result, parts, Bytes);
    return result;
  }

  Part& operator[](int i) { return parts[i]; }
};

using Floats = Parts<float>;
using Ints = Parts<int32_t>;
using Shorts = Parts<int16_t>;

inline void require(bool holds) {
  if (!holds) std::abort();
}

inline float widened(uint16_t bits) {
  const uint32_t u = uint32_t(bits) << 16;
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

inline uint16_t narrowed(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return x != x ? u >> 16 | 0x40 : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}

// --- AVX512

inline __m512i load(const void* p) {
  __m512i v;
  std::memcpy(&v, p, 64);
  return v;
}

template <class Register>
void stream(void* p, Register v) {
  require(uintptr_t(p) % 64 == 0);
  std::memcpy(p, &v, 64);
}

inline __m512i spread_int(int32_t x) {
  Ints r;
  for (int i = 0; i < 16; i++) r[i] = x;
  return r.as<__m512i>();
}

inline __m512i spread_byte(char x) {
  __m512i r;
  std::memset(&r, x, 64);
  return r;
}

inline __m512i both(__m512i a, __m512i b) {
  Ints x = Ints::of(a), y = Ints::of(b);
  for (int i = 0; i < 16; i++) x[i] &= y[i];
  return x.as<__m512i>();
}

inline __mmask16 compare(__m512 a, __m512 b, int how) {
  require(how == _CMP_NLT_UQ);
  Floats x = Floats::of(a), y = Floats::of(b);
  __mmask16 mask = 0;
  for (int i = 0; i < 16; i++) mask |= !(x[i] < y[i]) << i;
  return mask;
}

inline __m512 greater(__mmask16 mask, __m512 a, __m512 b) {
  Floats x = Floats::of(a), y = Floats::of(b), r;
  for (int i = 0; i < 16; i++) r[i] = !(mask >> i & 1) ? 0 : x[i] > y[i] ? x[i] : y[i];
  return r.as<__m512>();
}

inline __m512 whole(__mmask16 mask, __m512 a, int how) {
  require(how == _MM_FROUND_TO_NEAREST_INT || how == (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  Floats x = Floats::of(a), r;
  for (int i = 0; i < 16; i++) r[i] = mask >> i & 1 ? std::nearbyint(x[i]) : 0;
  return r.as<__m512>();
}

inline __m512 scaled(__mmask16 mask, __m512 a, __m512 exponents) {
  Floats x = Floats::of(a), n = Floats::of(exponents), r;
  for (int i = 0; i < 16; i++) r[i] = mask >> i & 1 ? std::ldexp(x[i], int(std::floor(n[i]))) : 0;
  return r.as<__m512>();
}

inline __m256 half(int mask, __m512 v, int number) {
  require(mask == 0xff);
  __m256 r;
  std::memcpy(&r, (const char*)&v + 32 * number, 32);
  return r;
}

inline __m128i low_bytes(__mmask16 mask, __m512i v) {
  Ints x = Ints::of(v);
  Parts<int8_t, 16> r;
  for (int i = 0; i < 16; i++) r[i] = mask >> i & 1 ? int8_t(x[i]) : 0;
  return r.as<__m128i>();
}

inline __m512i multiply_pairs(__m512i a, __m512i b) {
  Shorts x = Shorts::of(a), y = Shorts::of(b);
  Ints r;
  for (int i = 0; i < 16; i++) r[i] = x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1];
  return r.as<__m512i>();
}

// --- its bfloat16 and its integers

inline __m512bh narrow_two(__m512 high, __m512 low) {
  Floats h = Floats::of(high), l = Floats::of(low);
  Parts<uint16_t> r;
  for (int i = 0; i < 16; i++) r[i] = narrowed(l[i]), r[16 + i] = narrowed(h[i]);
  return r.as<__m512bh>();
}

inline __m256bh narrow(__m512 v) {
  Floats x = Floats::of(v);
  Parts<uint16_t, 32> r;
  for (int i = 0; i < 16; i++) r[i] = narrowed(x[i]);
  return r.as<__m256bh>();
}

inline __m512 add_products(__m512 sums, __m512bh a, __m512bh b) {
  Floats s = Floats::of(sums);
  Parts<uint16_t> x = Parts<uint16_t>::of(a), y = Parts<uint16_t>::of(b);
  for (int i = 0; i < 16; i++)
    for (int k = 1; k >= 0; k--) s[i] += widened(x[2 * i + k]) * widened(y[2 * i + k]);
  return s.as<__m512>();
}

inline __m512i add_byte_products(__m512i sums, __m512i a, __m512i b) {
  Ints s = Ints::of(sums);
  Parts<uint8_t> x = Parts<uint8_t>::of(a);
  Parts<int8_t> y = Parts<int8_t>::of(b);
  for (int i = 0; i < 64; i++) s[i / 4] += x[i] * y[i];
  return s.as<__m512i>();
}

// --- AMX: tiles are given by number, as constants

struct Shapes {
  uint8_t palette, first_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(Shapes) == 64, "what hardware reads");

struct Tiles {
  Shapes shapes;
  bool are_shaped = false;
  char rows[8][16][64];
};

inline Tiles& tiles() {
  static thread_local Tiles mine;
  return mine;
}

inline void shape(const void* shapes) {
  std::memcpy(&tiles().shapes, shapes, 64);
  require(tiles().shapes.palette == 1);
  std::memset(tiles().rows, 0, sizeof tiles().rows);
  tiles().are_shaped = true;
}

inline void release() { tiles().are_shaped = false; }

inline int num_rows(int tile) {
  require(tiles().are_shaped && tiles().shapes.rows[tile]);
  return tiles().shapes.rows[tile];
}

inline void clear(int tile) {
  num_rows(tile);
  std::memset(tiles().rows[tile], 0, sizeof tiles().rows[tile]);
}

inline void load_tile(int tile, const void* from, int64_t stride) {
  clear(tile);
  for (int row = 0; row < num_rows(tile); row++)
    std::memcpy(tiles().rows[tile][row], (const char*)from + row * stride, tiles().shapes.row_bytes[tile]);
}

inline void store_tile(int tile, void* to, int64_t stride) {
  for (int row = 0; row < num_rows(tile); row++)
    std::memcpy((char*)to + row * stride, tiles().rows[tile][row], tiles().shapes.row_bytes[tile]);
}

// sums [m, n] += a [m, k] * b [k, n], whose elements of 32 bits each hold numbers that `add` multiplies and adds.
template <class Sum, class Add>
void multiply(int sums, int a, int b, Add add) {
  const Shapes& shapes = tiles().shapes;
  const int rows = num_rows(sums), columns = shapes.row_bytes[sums] / 4, depth = shapes.row_bytes[a] / 4;
  require(num_rows(a) == rows && num_rows(b) == depth && shapes.row_bytes[b] == shapes.row_bytes[sums]);
  for (int m = 0; m < rows; m++)
    for (int k = 0; k < depth; k++)
      for (int n = 0; n < columns; n++) {
        char* at = tiles().rows[sums][m] + 4 * n;
        Sum sum;
        std::memcpy(&sum, at, 4);
        sum = add(sum, tiles().rows[a][m] + 4 * k, tiles().rows[b][k] + 4 * n);
        std::memcpy(at, &sum, 4);
      }
}

inline void multiply_bfloat16(int sums, int a, int b) {
  multiply<float>(sums, a, b, [](float sum, const char* left, const char* right) {
    uint16_t x[2], y[2];
    std::memcpy(x, left, 4), std::memcpy(y, right, 4);
    for (int i = 0; i < 2; i++) sum += widened(x[i]) * widened(y[i]);
    return sum;
  });
}

inline void multiply_bytes(int sums, int a, int b) {
  multiply<int32_t>(sums, a, b, [](int32_t sum, const char* left, const char* right) {
    for (int i = 0; i < 4; i++) sum += int8_t(left[i]) * int8_t(right[i]);
    return sum;
  });
}

}  // namespace emulated

#undef _mm512_cmp_ps_mask
#undef _mm512_maskz_extractf32x8_ps
#undef _mm512_maskz_roundscale_ps
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#undef _tile_loadconfig
#undef _tile_loadd
#undef _tile_release
#undef _tile_stored
#undef _tile_zero
#define _mm512_and_si512 emulated::both
#define _mm512_cmp_ps_mask emulated::compare
#define _mm512_cvtne2ps_pbh emulated::narrow_two
#define _mm512_cvtneps_pbh emulated::narrow
#define _mm512_dpbf16_ps emulated::add_products
#define _mm512_dpbusd_epi32 emulated::add_byte_products
#define _mm512_loadu_si512 emulated::load
#define _mm512_madd_epi16 emulated::multiply_pairs
#define _mm512_maskz_cvtepi32_epi8 emulated::low_bytes
#define _mm512_maskz_extractf32x8_ps emulated::half
#define _mm512_maskz_max_ps emulated::greater
#define _mm512_maskz_roundscale_ps emulated::whole
#define _mm512_maskz_scalef_ps emulated::scaled
#define _mm512_set1_epi32 emulated::spread_int
#define _mm512_set1_epi8 emulated::spread_byte
#define _mm512_stream_ps emulated::stream
#define _mm512_stream_si512 emulated::stream
#define _tile_dpbf16ps emulated::multiply_bfloat16
#define _tile_dpbssd emulated::multiply_bytes
#define _tile_loadconfig emulated::shape
#define _tile_loadd emulated::load_tile
#define _tile_release emulated::release
#define _tile_stored emulated::store_tile
#define _tile_zero emulated::clear
