#include <atomic>
#include <cstring>

#include "instruction_sets.h"
#include "kernels.h"

namespace hullft {

extern const Kernels kernels_portable;
#if defined(HULLFT_X86)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

namespace {

#if defined(HULLFT_X86)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}
#endif

constexpr int kMaxTables = 3;

int list_tables(const Kernels* tables[kMaxTables]) {
  int n = 0;
#if defined(HULLFT_X86)
  if (has_avx512()) tables[n++] = &kernels_avx512;
  if (has_avx2()) tables[n++] = &kernels_avx2;
#endif
  tables[n++] = &kernels_portable;
  return n;
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> table = [] {
    const Kernels* tables[kMaxTables];
    list_tables(tables);
    return tables[0];
  }();
  return table;
}

bool is_intel_processor() {
#if defined(HULLFT_X86)
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

std::atomic<bool>& quick() {
  static std::atomic<bool> used = is_intel_processor();
  return used;
}

const Kernels& kernels() { return *current().load(std::memory_order_relaxed); }

}  // namespace

const AllDotKernels& all_dot_kernels() { return kernels().dot; }
const StepKernels& step_kernels() { return kernels().step; }
const ScreeningKernels& screening_kernels() { return kernels().screening; }
const CorrectiveKernels& corrective_kernels() { return kernels().corrective; }
const PivotingKernel& pivoting_kernel() { return kernels().pivoting; }
SiftPickKernel sift_pick_kernel() { return kernels().sift_pick; }
const AllReplayKernels& all_replay_kernels() { return kernels().replay; }

const char* simd_level() { return kernels().name; }

int available_simd_levels(const char* names[], int capacity) {
  const Kernels* tables[kMaxTables];
  const int n = list_tables(tables);
  for (int i = 0; i < n && i < capacity; ++i) names[i] = tables[i]->name;
  return n;
}

bool choose_simd_level(const char* name) {
  const Kernels* tables[kMaxTables];
  const int n = list_tables(tables);
  for (int i = 0; i < n; ++i) {
    if (std::strcmp(tables[i]->name, name) == 0) {
      current().store(tables[i], std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

bool quick_quotients() { return quick().load(std::memory_order_relaxed); }

void use_quick_quotients(bool use) { quick().store(use, std::memory_order_relaxed); }

}  // namespace hullft
