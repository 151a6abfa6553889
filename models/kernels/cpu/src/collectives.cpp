// Collectives between the ranks of one group, through memory that all of them have mapped.
//
// The segment holds one line per rank, then two sets of slots, each with one per rank. A collective is one or more
// rounds, which all ranks number alike. In round n a rank
//   1. waits until every rank has entered round n - 1, and so has read all it wanted of round n - 2;
//   2. writes its part into its slot of set n % 2, and then n into its line: it has entered the round;
//   3. waits until those ranks have entered it whose parts it needs, and reads them.
// No rank is more than one round ahead of another that it does not need, and two sets are enough.
//
// The slots of a set go round among the ranks, so that one of two ranks writes into what it has read two rounds
// before. A line that another core has read must be fetched back from there before it is written, which takes longer
// than all else where the cores have no cache in common; so each line crosses once a round, not twice.
#include "kernels.hpp"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstring>
#include <new>
#include <thread>

#include <fcntl.h>
#include <sched.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define RZ_EXPORT extern "C" __attribute__((visibility("default")))

extern "C" void rz_sum_parts(int32_t type, const void* const* parts, int64_t num_parts, void* out, int64_t count);

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

constexpr int MAX_RANKS = 64;
// How long a waiting rank gives way to others before it sleeps: waking it takes tens of microseconds.
constexpr microseconds YIELD{2000};
// How long it sleeps before it looks whether the other one is alive.
constexpr microseconds SLEEP{20000};

// Of one rank, on a cache line pair of its own: neighbouring lines are fetched together.
struct alignas(128) Line {
  std::atomic<uint32_t> round;
  std::atomic<uint32_t> num_sleeping;
};
static_assert(sizeof(Line) == 128 && std::atomic<uint32_t>::is_always_lock_free, "shared between processes");

struct Ranks {
  Line* lines;
  char* slots;
  int64_t slot_bytes;
  int file;  // each rank has locked the byte of its number, for as long as it lives
  int rank, world_size;
  microseconds spin, limit;
};

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#endif
}

// Rounds wrap around: only the distance counts.
bool has_entered(const Line& line, uint32_t round) {
  return int32_t(line.round.load(std::memory_order_acquire) - round) >= 0;
}

void sleep_until_changed(Line& line, uint32_t seen) {
#if defined(__linux__)
  const timespec limit{0, SLEEP.count() * 1000};
  line.num_sleeping.fetch_add(1);
  syscall(SYS_futex, &line.round, FUTEX_WAIT, seen, &limit, nullptr, 0);
  line.num_sleeping.fetch_sub(1);
#else
  (void)line, (void)seen;
  std::this_thread::sleep_for(microseconds{50});
#endif
}

// A rank that ended has lost its lock, even while its parent has not yet noticed.
bool is_gone(const Ranks& ranks, int other) {
  struct flock lock{};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = other;
  lock.l_len = 1;
  return fcntl(ranks.file, F_GETLK, &lock) == 0 && lock.l_type == F_UNLCK;
}

int failure(int kind, int rank) { return kind * MAX_RANKS + rank; }

int wait_slowly(const Ranks& ranks, int other, uint32_t round) {
  Line& line = ranks.lines[other];
  const auto began = Clock::now();
  for (;;) {
    for (int i = 0; i < 8; i++) {
      if (has_entered(line, round)) return 0;
      pause();
    }
    if (Clock::now() - began > ranks.spin) break;
  }
  while (Clock::now() - began < YIELD) {
    if (has_entered(line, round)) return 0;
    sched_yield();
  }
  for (;;) {
    const uint32_t seen = line.round.load(std::memory_order_acquire);
    if (int32_t(seen - round) >= 0) return 0;
    sleep_until_changed(line, seen);
    // One that is not there yet has no lock yet.
    const bool gone = seen != 0 && is_gone(ranks, other);
    if (has_entered(line, round)) return 0;
    if (gone) return failure(2, other);
    if (Clock::now() - began > ranks.limit) return failure(1, other);
  }
}

int wait_for(const Ranks& ranks, int other, uint32_t round) {
  return has_entered(ranks.lines[other], round) ? 0 : wait_slowly(ranks, other, round);
}

int wait_for_all(const Ranks& ranks, uint32_t round) {
  for (int other = 0; other < ranks.world_size; other++)
    if (other != ranks.rank)
      if (const int status = wait_for(ranks, other, round)) return status;
  return 0;
}

uint32_t next_round(const Ranks& ranks) {
  return ranks.lines[ranks.rank].round.load(std::memory_order_relaxed) + 1;
}

void enter(Ranks& ranks, uint32_t round) {
  Line& line = ranks.lines[ranks.rank];
  line.round.store(round);  // sequentially consistent: whoever is not seen to sleep sees the new number
#if defined(__linux__)
  if (line.num_sleeping.load()) syscall(SYS_futex, &line.round, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
#endif
}

char* slot(const Ranks& ranks, int rank, uint32_t round) {
  const uint32_t size = ranks.world_size;
  return ranks.slots + (round % 2 * size + (rank + round / 2) % size) * ranks.slot_bytes;
}

// Calls round(offset, bytes) for every part of `bytes` that fits into a slot, until one fails.
template <class Round>
int in_rounds(const Ranks& ranks, int64_t bytes, Round round) {
  for (int64_t offset = 0; offset < bytes; offset += ranks.slot_bytes)
    if (const int status = round(offset, std::min(ranks.slot_bytes, bytes - offset))) return status;
  return 0;
}

}  // namespace

// Bytes of the segment; it starts as zeros.
RZ_EXPORT int64_t rz_ranks_bytes(int32_t world_size, int64_t slot_bytes) {
  return world_size * (int64_t(sizeof(Line)) + 2 * slot_bytes);
}

// The segment as this rank sees it, whose file it has locked at the byte of its number; null for want of memory or
// for too many ranks. slot_bytes is a multiple of 128. Waiting ranks spin for so long before they give way to others.
RZ_EXPORT void* rz_ranks_open(void* segment, int32_t file, int32_t rank, int32_t world_size, int64_t slot_bytes,
                              int64_t spin_microseconds, int64_t limit_microseconds) {
  if (world_size > MAX_RANKS) return nullptr;
  Line* lines = static_cast<Line*>(segment);
  char* slots = static_cast<char*>(segment) + world_size * sizeof(Line);
  return new (std::nothrow) Ranks{lines,      slots, slot_bytes, file, rank, world_size, microseconds{spin_microseconds},
                                  microseconds{limit_microseconds}};
}

RZ_EXPORT void rz_ranks_close(void* ranks) { delete static_cast<Ranks*>(ranks); }

// All of the following return 0, or 64 + r if rank r did not come in time, or 128 + r if it is gone. Then the ranks are
// in different rounds, and none of them may go on.

RZ_EXPORT int32_t rz_ranks_barrier(void* handle) {
  Ranks& ranks = *static_cast<Ranks*>(handle);
  const uint32_t round = next_round(ranks);
  enter(ranks, round);
  return wait_for_all(ranks, round);
}

// data [count] becomes the sum of all ranks', added in float and in the order of the ranks: the same bits everywhere.
RZ_EXPORT int32_t rz_ranks_all_reduce(void* handle, int32_t type, void* data, int64_t count) {
  Ranks& ranks = *static_cast<Ranks*>(handle);
  const int64_t element = type == F32 ? 4 : 2;
  return in_rounds(ranks, count * element, [&](int64_t offset, int64_t bytes) {
    char* mine = static_cast<char*>(data) + offset;
    const uint32_t round = next_round(ranks);
    if (const int status = wait_for_all(ranks, round - 1)) return status;
    std::memcpy(slot(ranks, ranks.rank, round), mine, bytes);
    enter(ranks, round);
    if (const int status = wait_for_all(ranks, round)) return status;
    const void* parts[MAX_RANKS];
    for (int rank = 0; rank < ranks.world_size; rank++)
      parts[rank] = rank == ranks.rank ? mine : slot(ranks, rank, round);
    rz_sum_parts(type, parts, ranks.world_size, mine, bytes / element);
    return 0;
  });
}

// Every rank's data [bytes] to all_data [world_size, bytes] on those ranks that give one; all_data may be null.
RZ_EXPORT int32_t rz_ranks_gather(void* handle, const void* data, int64_t bytes, void* all_data) {
  Ranks& ranks = *static_cast<Ranks*>(handle);
  return in_rounds(ranks, bytes, [&](int64_t offset, int64_t part_bytes) {
    const char* mine = static_cast<const char*>(data) + offset;
    const uint32_t round = next_round(ranks);
    if (const int status = wait_for_all(ranks, round - 1)) return status;
    std::memcpy(slot(ranks, ranks.rank, round), mine, part_bytes);
    enter(ranks, round);
    for (int rank = 0; all_data && rank < ranks.world_size; rank++) {
      if (const int status = rank == ranks.rank ? 0 : wait_for(ranks, rank, round)) return status;
      std::memcpy(static_cast<char*>(all_data) + rank * bytes + offset,
                  rank == ranks.rank ? mine : slot(ranks, rank, round), part_bytes);
    }
    return 0;
  });
}

// Rank 0's data [bytes] to all.
RZ_EXPORT int32_t rz_ranks_broadcast(void* handle, void* data, int64_t bytes) {
  Ranks& ranks = *static_cast<Ranks*>(handle);
  return in_rounds(ranks, bytes, [&](int64_t offset, int64_t part_bytes) {
    char* mine = static_cast<char*>(data) + offset;
    const uint32_t round = next_round(ranks);
    if (const int status = wait_for_all(ranks, round - 1)) return status;
    if (ranks.rank == 0) std::memcpy(slot(ranks, 0, round), mine, part_bytes);
    enter(ranks, round);
    if (ranks.rank == 0) return 0;
    if (const int status = wait_for(ranks, 0, round)) return status;
    std::memcpy(mine, slot(ranks, 0, round), part_bytes);
    return 0;
  });
}
