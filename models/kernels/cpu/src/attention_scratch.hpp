// What a thread works in while it attends: memory and registers that are set up once for many tasks.
#pragma once

#include "aligned.hpp"
#include "attention_amx.hpp"

namespace RZ_ISA {

constexpr int64_t TASK_ROWS = 64;  // of queries of one sequence and one KV head

// Tile registers are set up once for all tasks of a thread, of which each computes up to `most_rows` at once.
struct TileRegisters {
#if defined(__AMX_BF16__)
  const bool used;
  TileRegisters(bool used, int64_t most_rows) : used(used) {
    if (used) configure_tiles(most_rows);
  }
  ~TileRegisters() {
    if (used) release_tiles();
  }
#else
  TileRegisters(bool, int64_t) {}
#endif
};

// What one task works in.
template <class T>
struct Scratch {
  typedef typename Product<T>::Row Row;
  Row* queries;   // [TASK_ROWS + SUBTILE][padded], and so many more rows than a task has that any 16 can be read
  float* out;     // [TASK_ROWS + SUBTILE][padded]
  float* scores;  // [2 * SUBTILE][TILE]
  Row* weights;   // [3 * SUBTILE][TILE], of which the last third is only read
  T* tile;        // [2][TILE][padded]
  float* apart;   // [SUBTILE][TILE], of rows that are computed apart from their neighbours
  int64_t padded;
  float greatest[TASK_ROWS], total[TASK_ROWS];

  explicit Scratch(int64_t head_dim) : padded(round_up(head_dim, 32)) {
    static thread_local Aligned memory;
    const size_t rows = (TASK_ROWS + SUBTILE) * padded, squares = SUBTILE * TILE, keys = 2 * TILE * padded;
    char* at = (char*)memory.of((rows + 3 * squares) * (sizeof(Row) + 4) + keys * sizeof(T));
    out = (float*)at, at += rows * 4;
    scores = (float*)at, at += 2 * squares * 4;
    apart = (float*)at, at += squares * 4;
    queries = (Row*)at, at += rows * sizeof(Row);
    weights = (Row*)at, at += 3 * squares * sizeof(Row);
    tile = (T*)at;
  }
};

}  // namespace RZ_ISA
