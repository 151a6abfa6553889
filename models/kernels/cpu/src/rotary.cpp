// Norm and rotation of every head of query and key, in place.
#include "kernels.hpp"
#include "simd.hpp"

namespace RZ_ISA {

// One head: RMS norm by `weight` (unless null), then its halves turned against each other. All in float, rounded once.
template <class T>
static void turn(T* head, const T* weight, float eps, const float* cosine, const float* sine, int64_t half) {
  float scale = 1;
  int64_t i = 0;
  if (weight) {
    vf squares{};
    float rest = 0;
    for (; i + W <= 2 * half; i += W) {
      const vf x = load(head + i);
      squares += x * x;
    }
    for (; i < 2 * half; i++) rest += load1(head + i) * load1(head + i);
    scale = 1.0f / std::sqrt((sum(squares) + rest) / float(2 * half) + eps);
  }
  for (i = 0; i + W <= half; i += W) {
    vf a = load(head + i), b = load(head + half + i);
    if (weight) a = a * scale * load(weight + i), b = b * scale * load(weight + half + i);
    const vf c = load(cosine + i), s = load(sine + i);
    store(head + i, a * c - b * s);
    store(head + half + i, b * c + a * s);
  }
  for (; i < half; i++) {
    float a = load1(head + i), b = load1(head + half + i);
    if (weight) a = a * scale * load1(weight + i), b = b * scale * load1(weight + half + i);
    store1(head + i, a * cosine[i] - b * sine[i]);
    store1(head + half + i, b * cosine[i] + a * sine[i]);
  }
}

template <class T>
static void norm_rotate_rows(T* qkv, const T* query_weight, const T* key_weight, float eps, const float* cosine,
                             const float* sine, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t head_dim) {
  const int64_t width = (heads + 2 * kv_heads) * head_dim, half = head_dim / 2;
#pragma omp parallel for schedule(static) if (tokens * width > 16384)
  for (int64_t token = 0; token < tokens; token++)
    for (int64_t head = 0; head < heads + kv_heads; head++)
      turn(qkv + token * width + head * head_dim, head < heads ? query_weight : key_weight, eps,
           cosine + token * half, sine + token * half, half);
}

void norm_rotate(int32_t type, void* qkv, const void* query_weight, const void* key_weight, float eps,
                 const float* cosine, const float* sine, int64_t tokens, int64_t heads, int64_t kv_heads,
                 int64_t head_dim) {
  if (type == F32)
    norm_rotate_rows((float*)qkv, (const float*)query_weight, (const float*)key_weight, eps, cosine, sine, tokens,
                     heads, kv_heads, head_dim);
  else
    norm_rotate_rows((bf16*)qkv, (const bf16*)query_weight, (const bf16*)key_weight, eps, cosine, sine, tokens, heads,
                     kv_heads, head_dim);
}

}  // namespace RZ_ISA
