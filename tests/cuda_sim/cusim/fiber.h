// One fiber per CUDA thread, on one OS thread, and the switches between them and the scheduler.
#pragma once

#include <boost/context/detail/fcontext.hpp>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "keywords.h"

#ifdef CUSIM_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace cusim {

namespace fctx = boost::context::detail;

#ifdef CUSIM_ASAN
constexpr size_t kStackBytes = 256 << 10;
#else
constexpr size_t kStackBytes = 64 << 10;
#endif
constexpr size_t kPageBytes = 4096;
constexpr int kWarpLanes = 32;
constexpr int kMaxWarps = 32;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum State : uint8_t { kReady, kAtBarrier, kAtWarpOp, kExited };

struct Fiber;
// Computes the results of a warp operation for the lanes in `mask`, from `in` to `out`.
using WarpResult = void (*)(Fiber* warp, uint32_t mask);

// 16 bytes under way to shared memory.
struct AsyncCopy {
  void* to;
  const void* from;
  int group;
};

struct Fiber {
  State state;
  uint3 index;
  int thread, lane, warp;
  const char* what;  // the barrier or warp operation where it waits
  int line;
  uint32_t mask;
  int source_lane;
  WarpResult result;
  bool has_waited;  // for the kernel before, or its launch was no early one
  alignas(8) unsigned char in[8], out[8];
  std::vector<AsyncCopy> copies;
  int groups;  // that the thread has closed
  char* stack;
  void* fake_stack;  // AddressSanitizer's
  fctx::fcontext_t context;
};

struct Config {
  unsigned seed = 0;
  bool may_exit_early = false;  // threads that returned count as arrived at every barrier
  size_t max_shared_bytes = 227 * 1024;
  int sms = 132;
};

// What a barrier of the block gathers: __syncthreads_count, _and, _or.
struct Vote {
  int count = 0, all = 1, any = 0;
};

struct Simulator {
  Config config;
  std::vector<Fiber> fibers;
  Fiber* current = nullptr;
  char* stacks = nullptr;
  size_t n_stacks = 0;
  int n_threads = 0, n_exited = 0, n_arrived = 0;
  bool early = false;                          // the kernel before may still run
  unsigned epoch = 0;                          // grows with each block and at each of its barriers
  unsigned launch_epoch = 0, block_epoch = 0;  // the first of them
  unsigned epoch_before = 0;                   // the first one of the launch before
  unsigned warp_epoch[kMaxWarps] = {};         // barriers that order the lanes of one warp
  uint32_t born[kMaxWarps], live[kMaxWarps], waiting[kMaxWarps];
  Vote votes[2];  // of this barrier and the last one, which late readers still read
  uint64_t rng = 1;
  std::unique_ptr<char[]> dynamic_shared;
  size_t dynamic_bytes = 0;
  void (*body)(void*) = nullptr;
  void* body_argument = nullptr;
  std::exception_ptr exception;
  void (*on_atomic)(void*, size_t) = nullptr;  // the race checker's hooks
  void (*on_constant_load)(const void*) = nullptr;
  void* main_fake_stack = nullptr;
  const void* main_bottom = nullptr;
  size_t main_bytes = 0;
  fctx::fcontext_t main_context;

  uint32_t random() {
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return uint32_t(rng >> 16);
  }
};
inline Simulator sim;

inline std::string where(const Fiber& f) {
  static const char* const names[] = {"ready", "at barrier", "at warp op", "exited"};
  char text[200];
  snprintf(text, sizeof text, "thread (%u,%u,%u) %s", f.index.x, f.index.y, f.index.z,
           names[f.state]);
  std::string s = text;
  if (f.state == kAtBarrier || f.state == kAtWarpOp) {
    snprintf(text, sizeof text, " %s line %d", f.what, f.line);
    s += text;
  }
  if (f.state == kAtWarpOp) {
    snprintf(text, sizeof text, " mask %08x", f.mask);
    s += text;
  }
  return s;
}

// Thrown in a fiber, thrown again out of launch() by the scheduler; the other fibers are abandoned.
[[noreturn]] inline void fail(const std::string& message) {
  char text[96];
  snprintf(text, sizeof text, "cusim: block (%u,%u,%u): ", blockIdx.x, blockIdx.y, blockIdx.z);
  throw Error(text + message);
}

// AddressSanitizer wants to hear of every stack switch.
inline void switch_to_main([[maybe_unused]] bool last) {
  [[maybe_unused]] Fiber* me = sim.current;
#ifdef CUSIM_ASAN
  __sanitizer_start_switch_fiber(last ? nullptr : &me->fake_stack, sim.main_bottom, sim.main_bytes);
#endif
  sim.main_context = fctx::jump_fcontext(sim.main_context, nullptr).fctx;
#ifdef CUSIM_ASAN
  __sanitizer_finish_switch_fiber(me->fake_stack, &sim.main_bottom, &sim.main_bytes);
#endif
}

inline void resume(Fiber& f) {
  sim.current = &f;
  threadIdx = f.index;
#ifdef CUSIM_ASAN
  __sanitizer_start_switch_fiber(&sim.main_fake_stack, f.stack, kStackBytes);
#endif
  f.context = fctx::jump_fcontext(f.context, nullptr).fctx;
#ifdef CUSIM_ASAN
  __sanitizer_finish_switch_fiber(sim.main_fake_stack, nullptr, nullptr);
#endif
  sim.current = nullptr;
}

}  // namespace cusim
