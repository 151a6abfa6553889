// The kernels as functions on raw pointers. The same list is declared here for every instruction set.
#pragma once

#include <cstdint>

// Of a tensor's elements; the numbers are known to library.py.
enum Type : int32_t { F32 = 0, BF16 = 1 };

#define RZ_KERNELS(K)                                                                                              \
  /* residual += delta (unless delta is null), out = RMS norm of residual; all [rows, cols], contiguous. */       \
  K(add_rms_norm, (int32_t type, const void* delta, void* residual, const void* weight, float eps, void* out,     \
                   int64_t rows, int64_t cols),                                                                    \
    (type, delta, residual, weight, eps, out, rows, cols))                                                         \
  /* out = silu(gate) * up; gate_up [rows, 2 * cols], gate before up, out [rows, cols], contiguous. */            \
  K(silu_mul, (int32_t type, const void* gate_up, void* out, int64_t rows, int64_t cols),                         \
    (type, gate_up, out, rows, cols))                                                                              \
  /* Per row of logits [rows, cols], `stride` elements apart: the first greatest, or -1 if one is not finite. */  \
  K(argmax_finite, (int32_t type, const void* logits, int64_t stride, int64_t* out, int64_t rows, int64_t cols),  \
    (type, logits, stride, out, rows, cols))
