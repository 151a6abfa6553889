// Which keys are attended to in one go, in which order, and by which rows together.
#pragma once

#include <algorithm>
#include <vector>

#include "attention_cache.hpp"
#include "attention_scratch.hpp"
#include "kernels.hpp"

namespace RZ_ISA {

constexpr int64_t SEGMENT = 512;  // keys of a decoding sequence in one task

struct Task {
  int64_t family;
  int64_t sequence, row, num_rows;  // rows of this sequence and one KV head
  int64_t first, last;              // keys
  int64_t part, num_parts;          // which of the row's segments, and how many there are
  int64_t partial;                  // where the first of them lies among the partial results
};

// Tasks that are computed together: one, or decoding sequences that share the keys up to position `shared`.
struct Bundle {
  int64_t first, size;  // tasks
  int64_t num_rows;
  int64_t shared;
  double cost;
};

// Tokens of one sequence whose keys and values are written before any are read.
struct Run {
  int64_t first, last;
};

// All tasks, in the order in which they are computed, and in bundles.
struct Plan {
  std::vector<Run> runs;
  std::vector<Task> tasks;
  std::vector<Bundle> bundles;
  int64_t num_partials;
};

struct Planning {
  const PagedStep& step;
  int64_t window;    // positions that a position sees; 0 is all
  bool is_on_tiles;  // only then are rows of several sequences computed together
  int64_t rows_per_position = step.heads / step.kv_heads;

  // Positions from the task's first one to that of a row. A division takes as long as a vector of weights.
  int64_t positions_to(int64_t row) const { return rows_per_position == 1 ? row : row / rows_per_position; }
  int64_t num_queries(const Task& task) const {
    return step.query_starts[task.sequence + 1] - step.query_starts[task.sequence];
  }
  int64_t position(const Task& task, int64_t row) const {
    return step.context_lengths[task.sequence] - num_queries(task) + positions_to(row);
  }
  int64_t first_seen(int64_t position) const { return window ? std::max<int64_t>(0, position - window + 1) : 0; }
  const int32_t* blocks_of(const Task& task) const { return step.block_tables + task.sequence * step.table_stride; }

  // Whether a token is written by the task that reads it, head by head, while those lines are at hand. No other may read
  // it in this step: neither a task of its own sequence, nor another sequence, which may share a block once it is full.
  bool is_written_late(int64_t sequence) const {
    const int64_t first = step.query_starts[sequence], size = step.block_size;
    return step.query_starts[sequence + 1] == first + 1 && rows_per_position <= TASK_ROWS &&
           step.slots[first] % size != size - 1;
  }

  void plan(Plan& plan) const {
    plan.tasks.clear(), plan.runs.clear(), plan.num_partials = 0;
    for (int64_t s = 0; s < step.num_sequences; s++) {
      add_runs(plan, s);
      const int64_t queries = step.query_starts[s + 1] - step.query_starts[s], rows = queries * rows_per_position;
      for (int64_t row = 0; row < rows; row += TASK_ROWS) {
        Task task{step.block_tables[s * step.table_stride], s, row, std::min(TASK_ROWS, rows - row), 0, 0, 0, 1, 0};
        task.first = first_seen(position(task, row));
        task.last = position(task, row + task.num_rows - 1) + 1;
        if (queries > 1 || task.first / SEGMENT == (task.last - 1) / SEGMENT || rows > TASK_ROWS) {
          plan.tasks.push_back(task);
          continue;
        }
        const int64_t end = task.last;
        task.num_parts = (end - 1) / SEGMENT - task.first / SEGMENT + 1, task.partial = plan.num_partials;
        plan.num_partials += task.num_parts;
        for (; task.first < end; task.first = task.last, task.part++) {
          task.last = std::min(end, (task.first / SEGMENT + 1) * SEGMENT);
          plan.tasks.push_back(task);
        }
      }
    }
    std::stable_sort(plan.tasks.begin(), plan.tasks.end(), [](const Task& a, const Task& b) {
      return a.family != b.family ? a.family < b.family : a.first / SEGMENT < b.first / SEGMENT;
    });
    bundle(plan);
  }

  // Up to 16 tokens each, from one whole group of slots to the next.
  void add_runs(Plan& plan, int64_t sequence) const {
    if (is_written_late(sequence)) return;
    for (int64_t at = step.query_starts[sequence], end = step.query_starts[sequence + 1]; at < end;) {
      const int64_t next = std::min(end, at + GROUP - step.slots[at] % GROUP);
      plan.runs.push_back({at, next});
      at = next;
    }
  }

  void bundle(Plan& plan) const {
    const int64_t num_tasks = plan.tasks.size();
    plan.bundles.clear();
    for (int64_t at = 0; at < num_tasks;) {
      const Task& first = plan.tasks[at];
      Bundle bundle{at, 1, first.num_rows, 0, cost(first)};
      for (int64_t shared = first.last / GROUP * GROUP; is_on_tiles && !window && at + bundle.size < num_tasks;) {
        const Task& next = plan.tasks[at + bundle.size];
        if (num_queries(first) > 1 || num_queries(next) > 1 || bundle.num_rows + next.num_rows > SUBTILE) break;
        // One that shares much less would have the others share as little.
        const int64_t both = num_shared(first, next, shared);
        if (next.family != first.family || next.first != first.first || both - first.first < (shared - first.first) / 2 ||
            both <= first.first)
          break;
        bundle.shared = shared = both;
        bundle.num_rows += next.num_rows, bundle.cost += cost(next), bundle.size++;
      }
      plan.bundles.push_back(bundle);
      at += bundle.size;
    }
  }

  // Up to which position two tasks share their blocks, in whole groups and no further than `limit`.
  int64_t num_shared(const Task& a, const Task& b, int64_t limit) const {
    const int64_t last = std::min(limit, b.last / GROUP * GROUP), size = step.block_size;
    const int32_t *left = blocks_of(a), *right = blocks_of(b);
    int64_t at = a.first;
    while (at < last && left[at / size] == right[at / size]) at = (at / size + 1) * size;
    return std::min(at, last);
  }

  static double cost(const Task& task) { return double(task.num_rows + 4) * double(task.last - task.first + 16); }
};

}  // namespace RZ_ISA
