// The kernels as functions on raw pointers. The same list is declared here for every instruction set.
#pragma once

#include <cstdint>

// Of a tensor's elements; the numbers are known to library.py.
enum Type : int32_t { F32 = 0, BF16 = 1, INT8 = 2 };

// The sizes of attention and where the sequences of one step are; known to attention.py too. See StepMetadata.
struct PagedStep {
  int64_t type, heads, kv_heads, head_dim, block_size, num_sequences, num_tokens;
  int64_t table_stride;           // from one sequence's blocks to the next one's
  const int64_t* slots;           // [num_tokens]
  const int32_t* query_starts;    // [num_sequences + 1]
  const int32_t* context_lengths; // [num_sequences]
  const int32_t* block_tables;    // [num_sequences, table_stride]
};

constexpr int64_t MAX_HEAD_DIM = 256;

#define RZ_KERNELS(K)                                                                                              \
  /* out = the sum of parts [num_parts][count], added in float in their order; out may be one of them. */           \
  K(sum_parts, (int32_t type, const void* const* parts, int64_t num_parts, void* out, int64_t count),              \
    (type, parts, num_parts, out, count))                                                                          \
  /* residual += delta (unless delta is null), out = RMS norm of residual; all [rows, cols], contiguous. */       \
  /* Delta and residual may be F32 where the others are BF16: the sum of many layers is not rounded by each. */   \
  K(add_rms_norm, (int32_t type, int32_t sum_type, const void* delta, void* residual, const void* weight,         \
                   float eps, void* out, int64_t rows, int64_t cols),                                              \
    (type, sum_type, delta, residual, weight, eps, out, rows, cols))                                               \
  /* out = silu(gate) * up; gate_up [rows, 2 * cols], gate before up, out [rows, cols], contiguous. */            \
  K(silu_mul, (int32_t type, const void* gate_up, void* out, int64_t rows, int64_t cols),                         \
    (type, gate_up, out, rows, cols))                                                                              \
  /* weight [outputs, inputs] of type BF16 or INT8 -> packed, see gemm.cpp; `interleave` for gate before up. */    \
  K(pack_linear, (int32_t type, const void* weight, int64_t outputs, int64_t inputs, int32_t interleave,          \
                  void* packed),                                                                                   \
    (type, weight, outputs, inputs, interleave, packed))                                                           \
  /* out = x packed^T * scales + bias, and with `silu` silu(gate) * up of it. `type` is that of packed. */         \
  /* scratch: for INT8, 4 bytes a row rounded up to 64 bytes, and the padded inputs of every row; for BF16 */      \
  /* whose inputs are no multiple of 32, the padded inputs of every row. */                                        \
  K(linear, (int32_t type, int32_t x_type, const void* x, int64_t x_stride, const void* packed,                   \
             const float* scales, const float* bias, int32_t silu, int32_t out_type, void* out,                    \
             int64_t out_stride, int64_t rows, int64_t outputs, int64_t inputs, void* scratch),                    \
    (type, x_type, x, x_stride, packed, scales, bias, silu, out_type, out, out_stride, rows, outputs, inputs,      \
     scratch))                                                                                                     \
  /* Rows [count] of a BF16 weight that was packed without interleaving -> out [count, inputs]. */                \
  K(packed_rows, (const int64_t* rows, const void* packed, float* out, int64_t count, int64_t inputs),             \
    (rows, packed, out, count, inputs))                                                                            \
  /* In place on query and key of qkv [tokens, heads + 2 * kv_heads, head_dim], contiguous: RMS norm of each head */ \
  /* (unless a weight is null), then the rotation by cosine and sine [tokens, head_dim / 2]. */                    \
  K(norm_rotate, (int32_t type, void* qkv, const void* query_weight, const void* key_weight, float eps,            \
                  const float* cosine, const float* sine, int64_t tokens, int64_t heads, int64_t kv_heads,         \
                  int64_t head_dim),                                                                               \
    (type, qkv, query_weight, key_weight, eps, cosine, sine, tokens, heads, kv_heads, head_dim))                   \
  /* key and value of every token into its slot of the cache, then out [tokens, heads, head_dim], contiguous, of */ \
  /* the queries; a stride is from token to token, its heads are contiguous. `window` 0 is all. */                 \
  K(paged_attention, (const PagedStep* step, void* keys, void* values, const void* query, int64_t query_stride,    \
                      const void* key, int64_t key_stride, const void* value, int64_t value_stride,                \
                      int64_t window, void* out),                                                                  \
    (step, keys, values, query, query_stride, key, key_stride, value, value_stride, window, out))                  \
  /* Per row of logits [rows, cols], `stride` elements apart: the first greatest, or -1 if one is not finite. */  \
  K(argmax_finite, (int32_t type, const void* logits, int64_t stride, int64_t* out, int64_t rows, int64_t cols),  \
    (type, logits, stride, out, rows, cols))
