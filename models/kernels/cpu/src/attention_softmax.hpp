// What stands between scores and weights: an online softmax, in base 2.
#pragma once

#include <algorithm>
#include <cmath>

#include "attention_scratch.hpp"

namespace RZ_ISA {

constexpr int SOFTENED = 4;  // rows whose weights are computed together: at most as many as a vector has lanes

// The scores of a row that are seen.
struct Seen {
  int64_t from, to;
};

// Several rows at once, since each waits for its greatest score, and for the sum of its weights.
template <int N, class T, class Find>
static void soften(Scratch<T>& s, int64_t head_dim, int64_t row, int64_t r, int64_t width, Find find) {
  float* const scores = s.scores + r * TILE;
  typename Product<T>::Row* const weights = s.weights + r * TILE;
  for (int n = 0; n < N; n++) {
    // Also what a foreign key's score is, which may be NaN.
    const Seen seen = find(r + n);
    std::fill(scores + n * TILE, scores + n * TILE + std::min(seen.from, width), -INFINITY);
    std::fill(scores + n * TILE + std::max<int64_t>(seen.to, 0), scores + n * TILE + width, -INFINITY);
  }
  const float scale = 1.44269504f / std::sqrt(float(head_dim));
  vf top[N];
  for (int n = 0; n < N; n++) top[n] = splat(-INFINITY);
  for (int64_t i = 0; i < width; i += W)
    for (int n = 0; n < N; n++) top[n] = maximum(load(scores + n * TILE + i), top[n]);
  float shift[N], fall[W] = {};
  for (int n = 0; n < N; n++) {
    float& greatest = s.greatest[row + r + n];
    const float before = greatest, here = greatest_of(top[n]) * scale;
    greatest = here > before ? here : before;
    shift[n] = greatest == -INFINITY ? 0 : greatest;
    fall[n] = before - shift[n];
  }
  vf sums[N] = {};
  for (int64_t i = 0; i < width; i += W)
    for (int n = 0; n < N; n++) {
      const vf weight = exponential2<Product<T>::precise>(load(scores + n * TILE + i) * scale - shift[n]);
      sums[n] += weight;
      store(weights + n * TILE + i, weight);
    }
  const vf factors = exponential2<true>(load(fall));
  for (int n = 0; n < N; n++) {
    const float factor = factors[n];
    float *out = s.out + (row + r + n) * s.padded, &total = s.total[row + r + n];
    total = total * factor + total_of(sums[n]);
    for (int64_t i = 0; i < s.padded; i += W) store(out + i, load(out + i) * factor);
  }
}

// Scores of rows from `row` on, a line of s.scores each, become weights; what was added up before is adjusted. `seen`
// tells of each of these rows what it sees.
template <class T, class Find>
static void soften_all(Scratch<T>& s, int64_t head_dim, int64_t row, int64_t num_rows, int64_t width, Find seen) {
  int64_t r = 0;
  for (; r + SOFTENED <= num_rows; r += SOFTENED) soften<SOFTENED>(s, head_dim, row, r, width, seen);
  for (; r < num_rows; r++) soften<1>(s, head_dim, row, r, width, seen);
}

}  // namespace RZ_ISA
