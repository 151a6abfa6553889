// The plain C interface: each function calls the kernel of the instruction set that was chosen at load.
#include "kernels.hpp"

#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#define DECLARE(name, parameters, arguments) void name parameters;
#define FIELD(name, parameters, arguments) void(*name) parameters;
#define ENTRY(name, parameters, arguments) RZ_NAMESPACE::name,

struct Table {
  const char* isa;
  RZ_KERNELS(FIELD)
};

#define RZ_TABLE(isa)                              \
  namespace isa {                                  \
  RZ_KERNELS(DECLARE)                              \
  }

#if defined(RZ_HAS_amx)
RZ_TABLE(amx)
#define RZ_NAMESPACE amx
static const Table amx_table{"amx", RZ_KERNELS(ENTRY)};
#undef RZ_NAMESPACE
#endif
#if defined(RZ_HAS_avx512bf16)
RZ_TABLE(avx512bf16)
#define RZ_NAMESPACE avx512bf16
static const Table avx512bf16_table{"avx512bf16", RZ_KERNELS(ENTRY)};
#undef RZ_NAMESPACE
#endif
#if defined(RZ_HAS_avx512)
RZ_TABLE(avx512)
#define RZ_NAMESPACE avx512
static const Table avx512_table{"avx512", RZ_KERNELS(ENTRY)};
#undef RZ_NAMESPACE
#endif
#if defined(RZ_HAS_avx2)
RZ_TABLE(avx2)
#define RZ_NAMESPACE avx2
static const Table avx2_table{"avx2", RZ_KERNELS(ENTRY)};
#undef RZ_NAMESPACE
#endif
RZ_TABLE(portable)
#define RZ_NAMESPACE portable
static const Table portable_table{"portable", RZ_KERNELS(ENTRY)};
#undef RZ_NAMESPACE

#if defined(__x86_64__)
// Linux lets a process use the tile registers only if it asks first.
static bool may_use_tiles() {
#if defined(__linux__)
  constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
  return false;
#endif
}

static bool cpu_has(const char* isa) {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool bf16 =
      avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  if (!std::strcmp(isa, "avx2")) return avx2;
  if (!std::strcmp(isa, "avx512")) return avx512;
  if (!std::strcmp(isa, "avx512bf16")) return bf16;
  if (!std::strcmp(isa, "amx")) {
    unsigned a, b, c, d;  // leaf 7: AMX-BF16 is bit 22, AMX-TILE 24, AMX-INT8 25 of EDX
    if (!bf16 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    return (d >> 22 & 1) && (d >> 24 & 1) && (d >> 25 & 1) && may_use_tiles();
  }
  return true;
}
#endif

// Best first.
static const Table* const tables[] = {
#if defined(RZ_HAS_amx)
    &amx_table,
#endif
#if defined(RZ_HAS_avx512bf16)
    &avx512bf16_table,
#endif
#if defined(RZ_HAS_avx512)
    &avx512_table,
#endif
#if defined(RZ_HAS_avx2)
    &avx2_table,
#endif
    &portable_table,
};

static bool usable(const Table* table) {
#if defined(RZ_EMULATED)
  return table == &portable_table || cpu_has("avx2");
#elif defined(__x86_64__)
  return cpu_has(table->isa);
#else
  return table == &portable_table;
#endif
}

static const Table* best() {
  for (const Table* table : tables)
    if (usable(table)) return table;
  return &portable_table;
}

static const Table* chosen = best();

#define RZ_EXPORT extern "C" __attribute__((visibility("default")))

// The instruction set in use.
RZ_EXPORT const char* rz_isa() { return chosen->isa; }

// Use another one. Returns 0 if this machine or this build does not have it.
RZ_EXPORT int32_t rz_choose_isa(const char* isa) {
  for (const Table* table : tables)
    if (!std::strcmp(table->isa, isa) && usable(table)) {
      chosen = table;
      return 1;
    }
  return 0;
}

#define EXPORT(name, parameters, arguments) \
  RZ_EXPORT void rz_##name parameters { chosen->name arguments; }
RZ_KERNELS(EXPORT)
