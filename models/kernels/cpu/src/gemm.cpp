// Linear layers on weights that are packed once: out = x weight^T, with what follows it done on the way out.
//
// A weight [outputs, inputs] becomes panels of 16 outputs. Within a panel, the groups of consecutive inputs that one
// lane of a dot-product instruction takes (2 for bf16, 4 for int8) lie side by side:
//
//     panel [inputs / GROUP, 16, GROUP]       16 * GROUP elements are one line of 64 bytes
//
// Sixteen such lines are a tile of AMX, and one line is a vector of AVX-512: the same weights serve every row count
// and every instruction set, and are read in one stream. Inputs are padded with zeros to whole tiles of 64 bytes.
#include "kernels.hpp"
#include "simd.hpp"

#include <algorithm>
#include <vector>
#include <omp.h>

namespace RZ_ISA {

constexpr int64_t PANEL = 16;
// Outputs that are computed together: two panels.
constexpr int64_t PAIR = 2 * PANEL;

struct Bf16 {
  typedef bf16 Element;
  typedef float Accumulator;
  static constexpr int64_t GROUP = 2;
};

struct Int8 {
  typedef int8_t Element;
  typedef int32_t Accumulator;
  static constexpr int64_t GROUP = 4;
};

// Elements in a line of 64 bytes along the inputs: what a tile's row holds.
template <class Kind>
constexpr int64_t line() {
  return 16 * Kind::GROUP;
}

static int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

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
    for (int64_t group = 0; group < padded / Kind::GROUP; group++)
      for (int64_t column = 0; column < PANEL; column++)
        for (int64_t i = 0; i < Kind::GROUP; i++) {
          const int64_t row = first + column, input = group * Kind::GROUP + i;
          *out++ = row < last && input < inputs ? weight[row * inputs + input] : Element{};
        }
  }
}

void pack_linear(int32_t type, const void* weight, int64_t outputs, int64_t inputs, int32_t interleave, void* packed) {
  if (type == INT8)
    pack_panels<Int8>((const int8_t*)weight, outputs, inputs, interleave, (int8_t*)packed);
  else
    pack_panels<Bf16>((const bf16*)weight, outputs, inputs, interleave, (bf16*)packed);
}

// --- what follows the products

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

// --- the products of up to BLOCK rows with one pair of panels

// Memory that will be wanted next: so many lines of 64 bytes are fetched with each line of inputs.
struct Fetch {
  const char* from;
  int lines;
};

#if defined(__AMX_TILE__)

constexpr int64_t BLOCK = 32;

static int64_t next_block(int64_t rows) { return std::min(rows, BLOCK); }

struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0 to 3 accumulate [2 tiles of rows] x [2 panels]; 4 and 5 are rows of x, 6 and 7 are panels.
static void configure(int64_t rows) {
  TileConfig config;
  const int64_t upper = std::min<int64_t>(rows, 16), lower = std::max<int64_t>(rows - 16, 1);
  for (int tile = 0; tile < 8; tile++) {
    config.bytes_per_row[tile] = 64;
    config.rows[tile] = uint8_t(tile < 2 || tile == 4 ? upper : tile < 6 ? lower : 16);
  }
  _tile_loadconfig(&config);
}

template <class Kind>
struct Rows {
  int64_t configured = 0;

  ~Rows() {
    if (configured) _tile_release();
  }

  template <bool TWO>
  static void multiply(const typename Kind::Element* x, int64_t stride, const typename Kind::Element* panels,
                       int64_t padded, Fetch fetch) {
    constexpr int64_t LINE = line<Kind>();
    const typename Kind::Element *left = panels, *right = panels + padded * PANEL;
    _tile_zero(0);
    _tile_zero(1);
    if (TWO) {
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t k = 0; k < padded; k += LINE, left += PANEL * LINE, right += PANEL * LINE) {
      for (int i = 0; i < fetch.lines; i++, fetch.from += 64) _mm_prefetch(fetch.from, _MM_HINT_T1);
      _tile_loadd(4, x + k, stride * sizeof *x);
      _tile_loadd(6, left, 64);
      _tile_loadd(7, right, 64);
      if (TWO) _tile_loadd(5, x + 16 * stride + k, stride * sizeof *x);
      if (Kind::GROUP == 2) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (TWO) {
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
      } else {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        if (TWO) {
          _tile_dpbssd(2, 5, 6);
          _tile_dpbssd(3, 5, 7);
        }
      }
    }
  }

  void operator()(const typename Kind::Element* x, int64_t stride, int64_t rows, const typename Kind::Element* panels,
                  int64_t padded, Fetch fetch, typename Kind::Accumulator* products) {
    if (rows != configured) configure(configured = rows);
    if (rows > 16)
      multiply<true>(x, stride, panels, padded, fetch);
    else
      multiply<false>(x, stride, panels, padded, fetch);
    _tile_stored(0, products, PAIR * 4);
    _tile_stored(1, products + PANEL, PAIR * 4);
    if (rows > 16) {
      _tile_stored(2, products + 16 * PAIR, PAIR * 4);
      _tile_stored(3, products + 16 * PAIR + PANEL, PAIR * 4);
    }
  }
};

#else

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
  void operator()(const typename Kind::Element* x, int64_t stride, int64_t rows, const typename Kind::Element* panels,
                  int64_t padded, Fetch, typename Kind::Accumulator* products) {
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

#endif

// --- all rows and panels

// Rows of x that are multiplied with all panels before the next ones: they should stay in the second-level cache.
constexpr int64_t CACHED_BYTES = 768 * 1024;

template <class Kind>
static void multiply_all(const typename Kind::Element* x, int64_t stride, const typename Kind::Element* packed,
                         int64_t rows, int64_t outputs, int64_t inputs, const Finish& f) {
  const int64_t padded = round_up(inputs, line<Kind>());
  const int64_t pairs = round_up(outputs, PAIR) / PAIR;
  const int64_t cached =
      std::max<int64_t>(1, CACHED_BYTES / int64_t(padded * sizeof(typename Kind::Element)) / BLOCK) * BLOCK;
#pragma omp parallel if (rows * outputs * inputs > 1 << 18)
  {
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    const int64_t first = pairs * thread / threads, last = pairs * (thread + 1) / threads;
    Rows<Kind> multiply_rows;
    alignas(64) typename Kind::Accumulator products[BLOCK * PAIR];
    for (int64_t top = 0; top < rows; top += cached) {
      const int64_t bottom = std::min(top + cached, rows), blocks = (bottom - top + BLOCK - 1) / BLOCK;
      for (int64_t pair = first; pair < last; pair++) {
        const typename Kind::Element* panels = packed + pair * padded * PAIR;
        // While these panels are multiplied, the next pair comes from memory, a part with every block of rows.
        // More lines at a time would crowd out the loads of the panels at hand.
        const int lines = int(std::min<int64_t>(8, (32 + blocks - 1) / blocks));
        const char* next = (const char*)(panels + padded * PAIR);
        for (int64_t row = top, count; row < bottom; row += count) {
          count = next_block(bottom - row);
          fetch_for_writing(f, row, count, pair * PAIR);
          multiply_rows(x + row * stride, stride, count, panels, padded, Fetch{next, lines}, products);
          next += lines * 64 * (padded / line<Kind>());
          finish(f, products, row, count, pair * PAIR);
        }
      }
    }
  }
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
    typedef int8_t vb __attribute__((vector_size(W)));
    for (i = 0; i + W <= inputs; i += W) {
      const vb bytes = __builtin_convertvector((vu)(load(from + i) * inverse + 12582912.0f), vb);
      std::memcpy(to + i, &bytes, sizeof bytes);
    }
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
  Finish f{out_type, out, out_stride, bias, nullptr, nullptr, silu != 0, silu ? outputs / 2 : outputs};
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
