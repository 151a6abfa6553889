// The sum of the ranks' parts.
#include "kernels.hpp"
#include "simd.hpp"

namespace RZ_ISA {

// Less work than this is not worth waking another thread, in elements.
constexpr int64_t PARALLEL = 65536;
// Elements that are summed in registers at a time.
constexpr int64_t BLOCK = 4 * W;

template <class T>
static void sum_range(const T* const* parts, int64_t num_parts, T* out, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + BLOCK <= end; i += BLOCK) {
    Pair low = load_pair(parts[0] + i), high = load_pair(parts[0] + i + 2 * W);
    for (int64_t part = 1; part < num_parts; part++) {
      const Pair l = load_pair(parts[part] + i), h = load_pair(parts[part] + i + 2 * W);
      low.a += l.a, low.b += l.b, high.a += h.a, high.b += h.b;
    }
    store_sum(out + i, low), store_sum(out + i + 2 * W, high);
  }
  for (; i < end; i++) {
    float total = load1(parts[0] + i);
    for (int64_t part = 1; part < num_parts; part++) total += load1(parts[part] + i);
    store1(out + i, total);
  }
}

template <class T>
static void sum_all(const T* const* parts, int64_t num_parts, T* out, int64_t count) {
  if (count <= PARALLEL) return sum_range(parts, num_parts, out, 0, count);
  const int64_t num_blocks = (count + PARALLEL / 4 - 1) / (PARALLEL / 4);
#pragma omp parallel for schedule(static)
  for (int64_t block = 0; block < num_blocks; block++) {
    const int64_t begin = block * (PARALLEL / 4), end = begin + PARALLEL / 4;
    sum_range(parts, num_parts, out, begin, end < count ? end : count);
  }
}

void sum_parts(int32_t type, const void* const* parts, int64_t num_parts, void* out, int64_t count) {
  if (type == F32)
    sum_all((const float* const*)parts, num_parts, (float*)out, count);
  else
    sum_all((const bf16* const*)parts, num_parts, (bf16*)out, count);
}

}  // namespace RZ_ISA
