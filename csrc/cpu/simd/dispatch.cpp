#include <atomic>
#include <string>
#include <vector>

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

// The tables that can run here, widest first.
std::vector<const Kernels*> tables() {
  std::vector<const Kernels*> tables;
#if defined(HULLFT_X86)
  if (has_avx512()) tables.push_back(&kernels_avx512);
  if (has_avx2()) tables.push_back(&kernels_avx2);
#endif
  tables.push_back(&kernels_portable);
  return tables;
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> table = tables().front();
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

std::vector<std::string> simd_levels() {
  std::vector<std::string> names;
  for (const Kernels* table : tables()) names.push_back(table->name);
  return names;
}

bool choose_simd_level(const std::string& name) {
  for (const Kernels* table : tables()) {
    if (table->name != name) continue;
    current().store(table, std::memory_order_relaxed);
    return true;
  }
  return false;
}

bool quick_quotients() { return quick().load(std::memory_order_relaxed); }

void use_quick_quotients(bool use) { quick().store(use, std::memory_order_relaxed); }

}  // namespace hullft
