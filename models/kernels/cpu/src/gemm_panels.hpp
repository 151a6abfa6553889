// How weights lie in memory: panels of 16 outputs, see gemm.cpp.
#pragma once

#include "aligned.hpp"
#include "simd.hpp"

namespace RZ_ISA {

constexpr int64_t PANEL = 16;
// Outputs that are computed together: two panels.
constexpr int64_t PAIR = 2 * PANEL;

struct Bf16 {
  typedef bf16 Element;
  typedef float Accumulator;
  static constexpr int64_t GROUP = 2;
  static constexpr bool HAS_SUMS = false;  // of its weights, by output
};

struct Int8 {
  typedef int8_t Element;
  typedef int32_t Accumulator;
  static constexpr int64_t GROUP = 4;
  static constexpr bool HAS_SUMS = true;
};

// Elements in a line of 64 bytes along the inputs: what a tile's row holds.
template <class Kind>
constexpr int64_t line() {
  return 16 * Kind::GROUP;
}

// Memory that will be wanted next: so many lines of 64 bytes are fetched with each line of inputs; or else, with each
// line that is loaded, the one so many bytes after it.
struct Fetch {
  const char* from;
  int lines;
  int64_t ahead;

  void some() {
    for (int i = 0; i < lines; i++, from += 64) __builtin_prefetch(from, 0, 2);
  }
};

}  // namespace RZ_ISA
