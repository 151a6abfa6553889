// Linear layers on weights that are packed once: out = x weight^T, with what follows it done on the way out.
//
// A weight [outputs, inputs] becomes panels of 16 outputs. Within a panel, the groups of consecutive inputs that one
// lane of a dot-product instruction takes (2 for bf16, 4 for int8) lie side by side:
//
//     panel [inputs / GROUP, 16, GROUP]       16 * GROUP elements are one line of 64 bytes
//
// Sixteen such lines are a tile of AMX, and one line is a vector of AVX-512: the same weights serve every row count
// and every instruction set, and are read in one stream. Inputs are padded with zeros to whole tiles of 64 bytes.
// After the panels of int8 lie the sums over each output's weights, int32, which VNNI's unsigned inputs need.
#include "gemm_finish.hpp"
#include "gemm_panels.hpp"
#include "kernels.hpp"
#if defined(__AMX_TILE__)
#include "gemm_tiles.hpp"
#else
#include "gemm_vectors.hpp"
#endif

#include <algorithm>
#include <omp.h>

namespace RZ_ISA {

template <class Kind>
static void pack_panels(const typename Kind::Element* weight, int64_t outputs, int64_t inputs, int32_t interleave,
                        typename Kind::Element* packed) {
  typedef typename Kind::Element Element;
  const int64_t padded = round_up(inputs, line<Kind>());
  const int64_t panels = round_up(outputs, PAIR) / PANEL;
#pragma omp parallel for schedule(static)
  for (int64_t panel = 0; panel < panels; panel++) {
    // Gate and up, one after the other in the weight, take turns by panel: each pair then holds both of 16 columns.
    const int64_t first = interleave ? panel / 2 * PANEL + panel % 2 * (outputs / 2) : panel * PANEL;
    const int64_t last = interleave ? (panel % 2 + 1) * (outputs / 2) : outputs;
    Element* out = packed + panel * padded * PANEL;
    [[maybe_unused]] int32_t sums[PANEL] = {};
    for (int64_t group = 0; group < padded / Kind::GROUP; group++)
      for (int64_t column = 0; column < PANEL; column++)
        for (int64_t i = 0; i < Kind::GROUP; i++) {
          const int64_t row = first + column, input = group * Kind::GROUP + i;
          const Element element = row < last && input < inputs ? weight[row * inputs + input] : Element{};
          if constexpr (Kind::HAS_SUMS) sums[column] += element;
          *out++ = element;
        }
    if constexpr (Kind::HAS_SUMS)
      std::memcpy(packed + panels * padded * PANEL + panel * sizeof sums, sums, sizeof sums);
  }
}

void pack_linear(int32_t type, const void* weight, int64_t outputs, int64_t inputs, int32_t interleave, void* packed) {
  if (type == INT8)
    pack_panels<Int8>((const int8_t*)weight, outputs, inputs, interleave, (int8_t*)packed);
  else
    pack_panels<Bf16>((const bf16*)weight, outputs, inputs, interleave, (bf16*)packed);
}

// Of the rows that are multiplied with all panels before the next ones: they should stay in the second-level cache.
constexpr int64_t CACHED_BYTES = 768 * 1024;

// Results of so many bytes are written past the caches, where it can be whole lines: to be written in a cache a line is
// read first, and these are gone from it before they are wanted. Not so those of few rows: logits are looked at next.
constexpr int64_t STREAMED_BYTES = 1024 * 1024, STREAMED_ROWS = 128;

template <class Kind, class T>
static void multiply_all(const typename Kind::Element* x, int64_t stride, const typename Kind::Element* packed,
                         int64_t rows, int64_t outputs, int64_t inputs, const Finish& f) {
  const int64_t padded = round_up(inputs, line<Kind>());
  const int64_t pairs = round_up(outputs, PAIR) / PAIR;
  const int32_t no_sums[PAIR] = {};
  const int64_t cached = std::max<int64_t>(1, CACHED_BYTES / (padded * Rows<Kind>::BYTES) / BLOCK) * BLOCK;
#pragma omp parallel if (rows * outputs * inputs > 1 << 18)
  {
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    const int64_t first = pairs * thread / threads, last = pairs * (thread + 1) / threads;
    Rows<Kind> multiply_rows;
    alignas(64) typename Kind::Accumulator products[2][BLOCK * PAIR];  // of this block and of the one before
    int current = 0;
    Finishing<T, typename Kind::Accumulator> before{f};
    for (int64_t top = 0; top < rows; top += cached) {
      const int64_t bottom = std::min(top + cached, rows), blocks = (bottom - top + BLOCK - 1) / BLOCK;
      if (first < last) multiply_rows.begin(x + top * stride, stride, bottom - top, padded);
      for (int64_t pair = first; pair < last; pair++) {
        const typename Kind::Element* panels = packed + pair * padded * PAIR;
        const int32_t* weight_sums =
            Kind::HAS_SUMS ? (const int32_t*)(packed + pairs * padded * PAIR) + pair * PAIR : no_sums;
        // While these panels are multiplied, the next pair comes from memory, a part with every block of rows.
        const int lines = int(std::min(MOST_FETCHED, (PAIR + blocks - 1) / blocks));
        const char* next = (const char*)(panels + padded * PAIR);
        for (int64_t row = top, count; row < bottom; row += count) {
          count = next_block(bottom - row);
          before.expect(row, count, pair * PAIR);
          const Fetch fetch{next, lines, blocks > 1 ? 0 : AHEAD};
          multiply_rows(row - top, count, panels, padded, weight_sums, fetch, products[current], before);
          next += lines * 64 * (padded / line<Kind>());
          before.rest();
          before.begin(products[current], row, count, pair * PAIR);
          current ^= 1;
        }
      }
    }
    before.rest();
#if defined(__AVX512F__)
    if (f.is_streamed) _mm_sfence();  // what is streamed is in no order with what other threads are told
#endif
  }
}

template <class Kind>
static void multiply_all(const typename Kind::Element* x, int64_t stride, const typename Kind::Element* packed,
                         int64_t rows, int64_t outputs, int64_t inputs, const Finish& f) {
  if (f.out_type == F32)
    multiply_all<Kind, float>(x, stride, packed, rows, outputs, inputs, f);
  else
    multiply_all<Kind, bf16>(x, stride, packed, rows, outputs, inputs, f);
}

static void store_low_bytes(int8_t* to, vu v) {
#if defined(__AVX512F__)
  _mm_storeu_si128((__m128i*)to, _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)v));  // which GCC does not find
#else
  typedef int8_t vb __attribute__((vector_size(W)));
  const vb bytes = __builtin_convertvector(v, vb);
  std::memcpy(to, &bytes, sizeof bytes);
#endif
}

// x [rows, inputs] as int8 with a scale per row: x is about scale * quantised.
template <class T>
static void quantise(const T* x, int64_t stride, int64_t rows, int64_t inputs, int8_t* out, int64_t padded,
                     float* scales) {
#pragma omp parallel for schedule(static) if (rows * inputs > 16384)
  for (int64_t row = 0; row < rows; row++) {
    const T* from = x + row * stride;
    int8_t* to = out + row * padded;
    vf greatest{}, zeros{};
    float rest = 0, zero = 0;  // the zeros are NaN where a number is not finite: then so is the scale
    int64_t i = 0;
    for (; i + W <= inputs; i += W) {
      const vf v = load(from + i);
      greatest = maximum(maximum(v, -v), greatest);
      zeros += v * 0.0f;
    }
    for (; i < inputs; i++) {
      rest = std::max(rest, std::fabs(load1(from + i)));
      zero += load1(from + i) * 0.0f;
    }
    float lanes[W];
    store(lanes, greatest);
    for (float lane : lanes) rest = std::max(rest, lane);
    const float scale = rest / 127.0f + sum(zeros) + zero, inverse = rest > 0 ? 127.0f / rest : 0.0f;
    // Adding 1.5 * 2^23 rounds to nearest even and leaves the integer in the low bits.
    for (i = 0; i + W <= inputs; i += W) store_low_bytes(to + i, (vu)(load(from + i) * inverse + 12582912.0f));
    for (; i < inputs; i++) {
      const float rounded = load1(from + i) * inverse + 12582912.0f;
      int32_t bits;
      std::memcpy(&bits, &rounded, 4);
      to[i] = int8_t(bits);
    }
    std::fill(to + inputs, to + padded, int8_t(0));
    scales[row] = scale;
  }
}

// Rows whose length is no whole number of lines, copied and padded: a tile is loaded whole.
static const bf16* pad_rows(const bf16* x, int64_t stride, int64_t rows, int64_t inputs, int64_t padded, bf16* out) {
  for (int64_t row = 0; row < rows; row++) {
    std::copy(x + row * stride, x + row * stride + inputs, out + row * padded);
    std::fill(out + row * padded + inputs, out + (row + 1) * padded, bf16{0});
  }
  return out;
}

void linear(int32_t type, int32_t x_type, const void* x, int64_t x_stride, const void* packed, const float* scales,
            const float* bias, int32_t silu, int32_t out_type, void* out, int64_t out_stride, int64_t rows,
            int64_t outputs, int64_t inputs, void* scratch) {
  const int64_t columns = silu ? outputs / 2 : outputs, row_bytes = out_stride * (out_type == F32 ? 4 : 2);
  const bool is_streamed = (out_type == F32 ? STREAMS<float> : STREAMS<bf16>) && !silu && rows >= STREAMED_ROWS &&
                           rows * row_bytes >= STREAMED_BYTES && (int64_t(out) | row_bytes) % 64 == 0;
  Finish f{out_type, out, out_stride, bias, nullptr, nullptr, silu != 0, columns, is_streamed};
  if (type == INT8) {
    const int64_t padded = round_up(inputs, line<Int8>());
    float* row_scales = (float*)scratch;
    int8_t* quantised = (int8_t*)scratch + round_up(rows * 4, 64);
    if (x_type == F32)
      quantise((const float*)x, x_stride, rows, inputs, quantised, padded, row_scales);
    else
      quantise((const bf16*)x, x_stride, rows, inputs, quantised, padded, row_scales);
    f.row_scales = row_scales;
    f.column_scales = scales;
    multiply_all<Int8>(quantised, padded, (const int8_t*)packed, rows, outputs, inputs, f);
    return;
  }
  const bf16* from = (const bf16*)x;
  if (const int64_t padded = round_up(inputs, line<Bf16>()); padded != inputs) {
    from = pad_rows(from, x_stride, rows, inputs, padded, (bf16*)scratch);
    x_stride = padded;
  }
  multiply_all<Bf16>(from, x_stride, (const bf16*)packed, rows, outputs, inputs, f);
}

// Rows of a packed weight, in float: the embedding of a model whose head is the same matrix.
void packed_rows(const int64_t* rows, const void* packed, float* out, int64_t count, int64_t inputs) {
  const int64_t padded = round_up(inputs, line<Bf16>());
#pragma omp parallel for schedule(static) if (count * inputs > 16384)
  for (int64_t i = 0; i < count; i++) {
    const bf16* from = (const bf16*)packed + rows[i] / PANEL * padded * PANEL + rows[i] % PANEL * Bf16::GROUP;
    for (int64_t input = 0; input < inputs; input++)
      out[i * inputs + input] = load1(from + input / 2 * PANEL * 2 + input % 2);
  }
}

}  // namespace RZ_ISA
