// The products of up to BLOCK rows with one pair of panels, on the tile registers of AMX.
#pragma once

#include "gemm_panels.hpp"

#include <algorithm>

namespace RZ_ISA {

constexpr int64_t BLOCK = 32;

static int64_t next_block(int64_t rows) { return std::min(rows, BLOCK); }

// Lines of the next panels that are fetched with each line of inputs. More would crowd out the loads of those at hand.
constexpr int64_t MOST_FETCHED = 8;
constexpr int64_t AHEAD = 0;  // not tried with tile registers

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
  static constexpr int64_t BYTES = sizeof(typename Kind::Element);
  const typename Kind::Element* x = nullptr;
  int64_t stride = 0, configured = 0;

  ~Rows() {
    if (configured) _tile_release();
  }

  template <bool TWO, class Other>
  static void multiply(const typename Kind::Element* x, int64_t stride, const typename Kind::Element* panels,
                       int64_t padded, Fetch fetch, Other& other) {
    constexpr int64_t LINE = line<Kind>();
    const int64_t others = (BLOCK * LINE + padded - 1) / padded;
    const typename Kind::Element *left = panels, *right = panels + padded * PANEL;
    _tile_zero(0);
    _tile_zero(1);
    if (TWO) {
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t k = 0; k < padded; k += LINE, left += PANEL * LINE, right += PANEL * LINE) {
      fetch.some();
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
      other.some(others);
    }
  }

  // Those that are multiplied from now on.
  void begin(const typename Kind::Element* from, int64_t from_stride, int64_t, int64_t) {
    x = from, stride = from_stride;
  }

  // `rows` of them from `first` on. Rows of `other` are finished beside it.
  template <class Other>
  void operator()(int64_t first, int64_t rows, const typename Kind::Element* panels, int64_t padded, const int32_t*,
                  Fetch fetch, typename Kind::Accumulator* products, Other& other) {
    if (rows != configured) configure(configured = rows);
    if (rows > 16)
      multiply<true>(x + first * stride, stride, panels, padded, fetch, other);
    else
      multiply<false>(x + first * stride, stride, panels, padded, fetch, other);
    _tile_stored(0, products, PAIR * 4);
    _tile_stored(1, products + PANEL, PAIR * 4);
    if (rows > 16) {
      _tile_stored(2, products + 16 * PAIR, PAIR * 4);
      _tile_stored(3, products + 16 * PAIR + PANEL, PAIR * 4);
    }
  }
};

}  // namespace RZ_ISA
