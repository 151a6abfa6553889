// Paged attention: the step's keys and values into the cache, then every query over its sequence's blocks. What a
// decoding sequence adds is written by the task that reads it, while those lines are at hand.
//
// The queries of one sequence that share a KV head are its rows, position by position. A task is up to 64 rows over a
// range of keys, and every row's arithmetic depends on its own position alone: key tiles begin at fixed positions, and
// the keys of a decoding sequence are cut into segments of fixed length, whatever else is in the step and however many
// threads there are. So an answer does not depend on its neighbours, to the bit.
//
// Neighbours decide when it is computed, though: sequences that share their first block are a family, and a family's
// tasks over the same head and segment follow one another, so that shared keys and values are read from memory once.
// On tile registers, decoding sequences of a family are also computed together as far as they share their blocks.
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "attention_amx.hpp"
#include "attention_cache.hpp"
#include "attention_plan.hpp"
#include "attention_scratch.hpp"
#include "attention_softmax.hpp"
#include "attention_tiles.hpp"
#include "kernels.hpp"
#include "simd.hpp"

namespace RZ_ISA {

// Whether a cache of type T is read by tile registers.
template <class T>
static bool reads_on_tiles(const PagedStep& step) {
#if defined(__AMX_BF16__)
  return sizeof(T) == 2 && is_packed(step) && step.head_dim % 32 == 0;
#else
  (void)step;
  return false;
#endif
}

template <class T>
struct Attention : Planning {
  typedef Product<T> P;
  typedef typename P::Row Row;
  T *keys, *values;
  const T* query;
  int64_t query_stride;  // from token to token, as those that follow
  const T* key;
  int64_t key_stride;
  const T* value;
  int64_t value_stride;
  T* out;
  float* partials;

  // Of the flat heads of all tokens.
  int64_t head_of(const Task& task, int64_t row, int64_t kv_head) const {
    const int64_t positions = positions_to(row), token = step.query_starts[task.sequence] + positions;
    return token * step.heads + kv_head * rows_per_position + row - positions * rows_per_position;
  }
  // [max, sum, accumulated values] of one row of one segment.
  float* partial(const Task& task, int64_t part, int64_t kv_head, int64_t row) const {
    const int64_t index = (task.partial + part) * step.kv_heads + kv_head;
    return partials + (index * rows_per_position + row) * (2 + step.head_dim);
  }

  // Before anything is read.
  void write(const Run& run) const {
    write_tokens(step, keys, values, key, key_stride, value, value_stride, run.first, run.last);
  }

  // The token that a task ends with, unless it was written before.
  void write_late(const Task& task, int64_t kv_head) const {
    if (task.last != step.context_lengths[task.sequence] || !is_written_late(task.sequence)) return;
    const int64_t token = step.query_starts[task.sequence];
    write_head(step, keys, values, key + token * key_stride, value + token * value_stride, step.slots[token], kv_head);
  }

  // So many rows take less time than their keys and values do from memory.
  static constexpr int64_t FEW_ROWS = 8;

  // The bundles of all heads are cut into one run per thread, of equal cost.
  void attend(const Plan& plan, int64_t thread, int64_t num_threads) const {
    double total = 0, done = 0;
    int64_t most_rows = 1;
    for (const Bundle& bundle : plan.bundles) {
      total += bundle.cost * step.kv_heads;
      most_rows = std::max(most_rows, bundle.num_rows);
    }
    const double from = total * thread / num_threads, to = total * (thread + 1) / num_threads;
    Scratch<T> scratch(step.head_dim);
    const TileRegisters registers(is_on_tiles, most_rows);
    for (auto family = plan.bundles.begin(), end = family; family != plan.bundles.end(); family = end) {
      const int64_t block = plan.tasks[family->first].family;
      end = std::find_if(family, plan.bundles.end(),
                         [&](const Bundle& bundle) { return plan.tasks[bundle.first].family != block; });
      for (int64_t head = 0; head < step.kv_heads; head++)
        for (auto bundle = family; bundle != end; done += bundle++->cost) {
          const double middle = done + bundle->cost / 2;
          if (middle >= from && middle < to) run(*bundle, plan.tasks.data() + bundle->first, head, scratch);
        }
    }
  }

  void run(const Bundle& bundle, const Task* tasks, int64_t kv_head, Scratch<T>& s) const {
    if (bundle.size == 1) write_late(*tasks, kv_head);
    std::memset(s.out, 0, bundle.num_rows * s.padded * sizeof(float));
    std::memset((void*)(s.queries + bundle.num_rows * s.padded), 0, SUBTILE * s.padded * sizeof(Row));
    std::fill(s.greatest, s.greatest + bundle.num_rows, -INFINITY);
    std::fill(s.total, s.total + bundle.num_rows, 0.0f);
    int64_t last = 0, base = 0;
    for (const Task* task = tasks; task != tasks + bundle.size; base += task++->num_rows) {
      load_queries(*task, kv_head, s.queries + base * s.padded, s.padded);
      last = std::max(last, task->last);
    }
    for (int64_t at = tasks->first / TILE * TILE; at < last; at += TILE) {
      const int64_t from = std::max(at, tasks->first / GROUP * GROUP);
      if (bundle.size > 1)
        add_shared_tile(bundle, tasks, kv_head, from, at + TILE, s);
      else
        add_own_tile(*tasks, kv_head, from, std::min(at + TILE, last), s);
    }
    base = 0;
    for (const Task* task = tasks; task != tasks + bundle.size; base += task++->num_rows)
      for (int64_t row = 0; row < task->num_rows; row++) finish_row(*task, kv_head, row, base + row, s);
  }

  void load_queries(const Task& task, int64_t kv_head, Row* to, int64_t stride) const {
    for (int64_t r = 0; r < task.num_rows; r++, to += stride) {
      const int64_t head = head_of(task, task.row + r, kv_head);
      const int64_t token = step.query_starts[task.sequence] + positions_to(task.row + r);
      const T* from = query + token * query_stride + (head - token * step.heads) * step.head_dim;
      if constexpr (sizeof(Row) == sizeof(T))
        std::memcpy((void*)to, from, step.head_dim * sizeof(T));
      else
        for (int64_t i = 0; i < step.head_dim; i++) to[i] = load1(from + i);
      std::memset((void*)(to + step.head_dim), 0, (stride - step.head_dim) * sizeof(Row));
    }
  }

  void add_own_tile(const Task& task, int64_t kv_head, int64_t from, int64_t to, Scratch<T>& s) const {
    Tile<T> tile;
    tile.find(step, keys, values, blocks_of(task), kv_head, from, to, s.tile);
#if defined(__AMX_BF16__)
    if constexpr (sizeof(T) == 2)
      if (is_on_tiles) end_values(tile, step.head_dim, (uint32_t*)s.tile);
#endif
    const int64_t at_once = is_on_tiles ? 2 * SUBTILE : SUBTILE;
    for (int64_t row = 0; row < task.num_rows; row += at_once)
      add_tile(task, tile, row, std::min(at_once, task.num_rows - row), s);
  }

  // Online softmax of up to 32 rows from `row` of the task over one tile.
  void add_tile(const Task& task, const Tile<T>& tile, int64_t row, int64_t num_rows, Scratch<T>& s) const {
    const int64_t oldest = position(task, task.row + row), newest = position(task, task.row + row + num_rows - 1);
    const int64_t from = std::max(tile.first, first_seen(oldest) / GROUP * GROUP), to = std::min(tile.last, newest + 1);
    if (from >= to) return;
    const int64_t base = (from - tile.first) / GROUP, width = round_up(to - from, GROUP);
    const auto soften_rows = [&] {
      soften_all(s, step.head_dim, row, num_rows, width, [&](int64_t r) {
        const int64_t at = position(task, task.row + row + r);
        return Seen{std::max(from, first_seen(at)) - from, std::min(to, at + 1) - from};
      });
    };
    // The next head's keys and values lie behind this one's in each block. Behind the last head's lies another block,
    // and to ask for that in vain does no harm.
    const bool is_next_known = num_rows <= FEW_ROWS && is_packed(step);
    const int64_t ahead = is_next_known ? step.block_size * step.head_dim / Tile<T>::K : 0;
#if defined(__AMX_BF16__)
    if constexpr (sizeof(T) == 2)
      if (is_on_tiles) {
        score_on_tiles(num_rows, s.queries + row * s.padded, s.padded, tile.keys + base, width / GROUP, tile.key_stride,
                       step.head_dim, s.scores, TILE, ahead);
        soften_rows();
        weigh_on_tiles(num_rows, s.weights, TILE, tile.values + base, width / GROUP, step.head_dim,
                       s.out + row * s.padded, s.padded, ahead);
        return;
      }
#endif
    const typename P::Unit* columns[TILE / W];
    for (int64_t c = 0; c < width / W; c++) columns[c] = tile.keys[base + c * W / GROUP] + c * W % GROUP;
    score_tile<T>(num_rows, s.queries + row * s.padded, s.padded, columns, width / W, tile.key_stride,
                  (step.head_dim + P::K - 1) / P::K, ahead, s.scores, TILE);
    soften_rows();
    weigh_tile<T>(num_rows, s.weights, TILE, tile.values + base, tile.value_stride, to - from, ahead,
                  s.out + row * s.padded, s.padded);
  }

  // Tasks of a bundle whose own keys are on their way from memory while another's are multiplied.
  static constexpr int64_t AHEAD = 2;

  // The same of the rows of a bundle: together as far as they share the keys, and one task after the other beyond.
  void add_shared_tile(const Bundle& bundle, const Task* tasks, int64_t kv_head, int64_t from, int64_t end,
                       Scratch<T>& s) const {
#if defined(__AMX_BF16__)
    if constexpr (sizeof(T) == 2) {
      const int64_t middle = std::max(from, std::min(end, bundle.shared)), num_shared = (middle - from) / GROUP;
      const int64_t dim = step.head_dim, num_rows = bundle.num_rows;
      Tile<T> shared, own[SUBTILE];
      int64_t ends[SUBTILE], longest = 0;  // how many keys a row sees
      if (num_shared) {
        shared.find(step, keys, values, blocks_of(*tasks), kv_head, from, middle, s.tile);
        score_on_tiles(num_rows, s.queries, s.padded, shared.keys, num_shared, shared.key_stride, dim, s.scores, TILE);
      }
      for (int64_t t = 0, row = 0; t < bundle.size; t++) {
        const int64_t to = std::max(from, std::min(end, tasks[t].last));
        own[t].find(step, keys, values, blocks_of(tasks[t]), kv_head, std::min(middle, to), to, s.tile);
        longest = std::max(longest, to - from);
        for (int64_t r = 0; r < tasks[t].num_rows; r++) ends[row++] = to - from;
      }
      for (int64_t t = 0, row = 0; t < bundle.size; row += tasks[t++].num_rows) {
        if (t + AHEAD < bundle.size) own[t + AHEAD].fetch_keys(dim);
        own[t].fetch_values(dim);
        if (tasks[t].last > from && tasks[t].last <= end) write_late(tasks[t], kv_head);
        // The registers also write to the rows that follow, whose own scores are yet to come.
        if (const int64_t num_own = round_up(own[t].last - own[t].first, GROUP) / GROUP)
          score_on_tiles(tasks[t].num_rows, s.queries + row * s.padded, s.padded, own[t].keys, num_own,
                         own[t].key_stride, dim, s.scores + row * TILE + (middle - from), TILE);
      }
      soften_all(s, dim, 0, num_rows, round_up(longest, GROUP), [&](int64_t row) { return Seen{0, ends[row]}; });
      if (num_shared)
        weigh_on_tiles(num_rows, s.weights, TILE, shared.values, num_shared, dim, s.out, s.padded);
      for (int64_t t = 0, row = 0; t < bundle.size; row += tasks[t++].num_rows) {
        const int64_t size = tasks[t].num_rows * s.padded * sizeof(float);
        const int64_t num_own = round_up(own[t].last - own[t].first, GROUP) / GROUP;
        if (!num_own) continue;
        // Apart, since the registers also write the rows that follow.
        std::memcpy(s.apart, s.out + row * s.padded, size);
        end_values(own[t], dim, (uint32_t*)s.tile);
        weigh_on_tiles(tasks[t].num_rows, s.weights + row * TILE + (middle - from), TILE, own[t].values, num_own, dim,
                       s.apart, s.padded);
        std::memcpy(s.out + row * s.padded, s.apart, size);
      }
    }
#else
    (void)bundle, (void)tasks, (void)kv_head, (void)from, (void)end, (void)s;
#endif
  }

  // Row `row` of the task, which is row `at` of those that are computed together.
  void finish_row(const Task& task, int64_t kv_head, int64_t row, int64_t at, const Scratch<T>& s) const {
    const float* from = s.out + at * s.padded;
    if (task.num_parts > 1) {
      float* to = partial(task, task.part, kv_head, row);
      to[0] = s.greatest[at], to[1] = s.total[at];
      std::memcpy(to + 2, from, step.head_dim * sizeof(float));
      return;
    }
    T* to = out + head_of(task, task.row + row, kv_head) * step.head_dim;
    const float scale = 1.0f / s.total[at];
    int64_t i = 0;
    for (; i + W <= step.head_dim; i += W) store(to + i, load(from + i) * scale);
    for (; i < step.head_dim; i++) store1(to + i, from[i] * scale);
  }

  // The segments of one row, in their order.
  void reduce(const Task& task, int64_t kv_head, int64_t row) const {
    float greatest = -INFINITY, total = 0;
    for (int64_t part = 0; part < task.num_parts; part++) {
      const float each = partial(task, part, kv_head, row)[0];
      greatest = each > greatest ? each : greatest;
    }
    float sums[MAX_HEAD_DIM] = {};
    for (int64_t part = 0; part < task.num_parts; part++) {
      const float* from = partial(task, part, kv_head, row);
      const float factor = from[0] == greatest ? 1.0f : std::exp2(from[0] - greatest);
      total += factor * from[1];
      for (int64_t i = 0; i < step.head_dim; i++) sums[i] += factor * from[2 + i];
    }
    T* to = out + head_of(task, row, kv_head) * step.head_dim;
    for (int64_t i = 0; i < step.head_dim; i++) store1(to + i, sums[i] / total);
  }
};

template <class T>
static void attend_step(const PagedStep& step, T* keys, T* values, const T* query, int64_t query_stride,
                        const T* key, int64_t key_stride, const T* value, int64_t value_stride, int64_t window,
                        T* out) {
  static thread_local Plan plan;
  static thread_local Aligned partials;
  Attention<T> attention{{step, window, reads_on_tiles<T>(step)}, keys, values, query, query_stride, key, key_stride,
                         value, value_stride, out, nullptr};
  attention.plan(plan);
  const int64_t rows = plan.num_partials * step.heads;
  attention.partials = (float*)partials.of(rows * (2 + step.head_dim) * sizeof(float));
  const Plan& all = plan;  // the thread's own name means another plan in every thread
#pragma omp parallel
  {
#if defined(_OPENMP)
    const int64_t thread = omp_get_thread_num(), num_threads = omp_get_num_threads();
#else
    const int64_t thread = 0, num_threads = 1;
#endif
    if (!all.runs.empty()) {
#pragma omp for schedule(static)
      for (size_t index = 0; index < all.runs.size(); index++) attention.write(all.runs[index]);
    }
    attention.attend(all, thread, num_threads);
    if (all.num_partials) {
#pragma omp barrier
#pragma omp for schedule(static)
      for (size_t index = 0; index < all.tasks.size(); index++)
        if (const Task& task = all.tasks[index]; task.num_parts > 1 && task.part == 0)
          for (int64_t head = 0; head < step.kv_heads; head++)
            for (int64_t row = 0; row < task.num_rows; row++) attention.reduce(task, head, row);
    }
  }
}

void paged_attention(const PagedStep* step, void* keys, void* values, const void* query, int64_t query_stride,
                     const void* key, int64_t key_stride, const void* value, int64_t value_stride, int64_t window,
                     void* out) {
  if (step->type == F32)
    attend_step(*step, (float*)keys, (float*)values, (const float*)query, query_stride, (const float*)key, key_stride,
                (const float*)value, value_stride, window, (float*)out);
  else
    attend_step(*step, (bf16*)keys, (bf16*)values, (const bf16*)query, query_stride, (const bf16*)key, key_stride,
                (const bf16*)value, value_stride, window, (bf16*)out);
}

}  // namespace RZ_ISA
