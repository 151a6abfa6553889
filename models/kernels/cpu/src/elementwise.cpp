// Norm, activation and greatest logit: one pass over memory each, rows shared out over the threads.
#include "kernels.hpp"
#include "simd.hpp"

namespace RZ_ISA {

// Less work than this is not worth waking another thread, in elements.
constexpr int64_t PARALLEL = 16384;

template <class D, class R, class T>
static void add_rms_norm_rows(const D* delta, R* residual, const T* weight, float eps, T* out, int64_t rows,
                              int64_t cols) {
#pragma omp parallel for schedule(static) if (rows * cols > PARALLEL)
  for (int64_t row = 0; row < rows; row++) {
    R* r = residual + row * cols;
    const D* d = delta ? delta + row * cols : nullptr;
    T* o = out + row * cols;
    vf squares{};
    float rest = 0;
    int64_t i = 0;
    for (; i + W <= cols; i += W) {
      if (d) store(r + i, load(r + i) + load(d + i));
      const vf x = load(r + i);  // as it was rounded, which is what the next layer sees too
      squares += x * x;
    }
    for (; i < cols; i++) {
      if (d) store1(r + i, load1(r + i) + load1(d + i));
      rest += load1(r + i) * load1(r + i);
    }
    const float scale = 1.0f / std::sqrt((sum(squares) + rest) / float(cols) + eps);
    for (i = 0; i + W <= cols; i += W) store(o + i, load(r + i) * scale * load(weight + i));
    for (; i < cols; i++) store1(o + i, load1(r + i) * scale * load1(weight + i));
  }
}

void add_rms_norm(int32_t type, int32_t sum_type, const void* delta, void* residual, const void* weight, float eps,
                  void* out, int64_t rows, int64_t cols) {
  if (type == F32)
    add_rms_norm_rows((const float*)delta, (float*)residual, (const float*)weight, eps, (float*)out, rows, cols);
  else if (sum_type == F32)
    add_rms_norm_rows((const float*)delta, (float*)residual, (const bf16*)weight, eps, (bf16*)out, rows, cols);
  else
    add_rms_norm_rows((const bf16*)delta, (bf16*)residual, (const bf16*)weight, eps, (bf16*)out, rows, cols);
}

template <class T>
static void silu_mul_rows(const T* gate_up, T* out, int64_t rows, int64_t cols) {
#pragma omp parallel for schedule(static) if (rows * cols > PARALLEL)
  for (int64_t row = 0; row < rows; row++) {
    const T *gate = gate_up + 2 * row * cols, *up = gate + cols;
    T* o = out + row * cols;
    int64_t i = 0;
    for (; i + W <= cols; i += W) {
      const vf g = load(gate + i);
      store(o + i, g / (1.0f + exponential(-g)) * load(up + i));
    }
    for (; i < cols; i++) {
      const float g = load1(gate + i);
      store1(o + i, g / (1.0f + std::exp(-g)) * load1(up + i));
    }
  }
}

void silu_mul(int32_t type, const void* gate_up, void* out, int64_t rows, int64_t cols) {
  if (type == F32)
    silu_mul_rows((const float*)gate_up, (float*)out, rows, cols);
  else
    silu_mul_rows((const bf16*)gate_up, (bf16*)out, rows, cols);
}

template <class T>
static void argmax_rows(const T* logits, int64_t stride, int64_t* out, int64_t rows, int64_t cols) {
#pragma omp parallel for schedule(static) if (rows * cols > PARALLEL)
  for (int64_t row = 0; row < rows; row++) {
    const T* x = logits + row * stride;
    vf greatest = splat(-INFINITY), zeros{};
    float rest = 0, top = -INFINITY;
    int64_t i = 0;
    for (; i + W <= cols; i += W) {
      const vf v = load(x + i);
      zeros += v * 0.0f;  // anything but 0 for an infinity or a NaN
      greatest = maximum(v, greatest);
    }
    for (; i < cols; i++) {
      rest += load1(x + i) * 0.0f;
      top = load1(x + i) > top ? load1(x + i) : top;
    }
    float lanes[W];
    store(lanes, greatest);
    for (float lane : lanes) top = lane > top ? lane : top;
    int64_t found = -1;
    if (sum(zeros) + rest == 0.0f)
      for (i = 0; found < 0; i++)
        if (load1(x + i) == top) found = i;
    out[row] = found;
  }
}

void argmax_finite(int32_t type, const void* logits, int64_t stride, int64_t* out, int64_t rows, int64_t cols) {
  if (type == F32)
    argmax_rows((const float*)logits, stride, out, rows, cols);
  else
    argmax_rows((const bf16*)logits, stride, out, rows, cols);
}

}  // namespace RZ_ISA
