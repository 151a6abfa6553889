// Memory that begins at a line of the caches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

namespace RZ_ISA {

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Memory that grows and is kept.
struct Aligned {
  void* memory = nullptr;
  size_t size = 0;
  ~Aligned() { std::free(memory); }
  // Of at least so many bytes; what was in it may be lost.
  void* of(size_t bytes) {
    if (bytes > size) {
      std::free(memory);
      size = round_up(bytes, 4096);
      if (!(memory = std::aligned_alloc(64, size))) std::abort();
    }
    return memory;
  }
};

}  // namespace RZ_ISA
