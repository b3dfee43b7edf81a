// Runs the blocks of a grid one after another, and the threads of a block in an order of choice.
// Seed 0: warps and lanes ascending; 1: descending; above: random, and a warp may be left early.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "async_copy.h"
#include "collectives.h"

namespace cusim {

inline void run_fiber(fctx::transfer_t from) {
  sim.main_context = from.fctx;
#ifdef CUSIM_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &sim.main_bottom, &sim.main_bytes);
#endif
  try {
    sim.body(sim.body_argument);
    exit_thread(*sim.current);
  } catch (...) {
    sim.exception = std::current_exception();
  }
  switch_to_main(true);
}

inline void start_fiber(Fiber& f, int thread, dim3 block) {
  f.state = kReady;
  f.thread = thread, f.lane = thread % kWarpLanes, f.warp = thread / kWarpLanes;
  f.what = "", f.line = 0;
  f.copies.clear(), f.groups = 0;
  f.has_waited = !sim.early;
  const unsigned t = unsigned(thread);
  f.index = {t % block.x, t / block.x % block.y, t / block.x / block.y};
  f.stack = sim.stacks + size_t(thread) * (kStackBytes + kPageBytes) + kPageBytes;
#ifdef CUSIM_ASAN
  __asan_unpoison_memory_region(f.stack, kStackBytes);
  f.fake_stack = nullptr;
#endif
  // Equal page offsets would put every fiber's frame into the same cache sets.
  const size_t shift = size_t(thread) * 320 % kPageBytes;
  f.context = fctx::make_fcontext(f.stack + kStackBytes - shift, kStackBytes - shift, run_fiber);
}

[[noreturn]] inline void fail_deadlock() {
  std::string message = "deadlock: no thread can go on";
  std::map<std::string, int> seen;
  for (const Fiber& f : sim.fibers) {
    const std::string s = where(f);
    if (!seen[s.substr(s.find(')'))]++ && seen.size() <= 6) message += "; " + s;
  }
  fail(message);
}

// Order in which warps and lanes are visited.
struct Order {
  std::vector<int> warps;
  int lanes[kWarpLanes];

  explicit Order(int n_warps) : warps(size_t(n_warps)) {
    std::iota(warps.begin(), warps.end(), 0);
    std::iota(lanes, lanes + kWarpLanes, 0);
    if (sim.config.seed != 1) return;
    std::reverse(warps.begin(), warps.end());
    std::reverse(lanes, lanes + kWarpLanes);
  }

  void shuffle() {
    for (size_t i = warps.size() - 1; i > 0; --i)
      std::swap(warps[i], warps[sim.random() % (i + 1)]);
    for (unsigned i = kWarpLanes - 1; i > 0; --i)
      std::swap(lanes[i], lanes[sim.random() % (i + 1)]);
  }
};

// True when some lane of the warp ran.
inline bool run_warp(int warp, const Order& order) {
  bool ran = false;
  for (const int lane : order.lanes) {
    const int t = warp * kWarpLanes + lane;
    if (t >= sim.n_threads || sim.fibers[size_t(t)].state != kReady) continue;
    resume(sim.fibers[size_t(t)]);
    ran = true;
    if (sim.exception) std::rethrow_exception(std::exchange(sim.exception, nullptr));
  }
  return ran;
}

inline void run_block() {
  Order order((sim.n_threads + kWarpLanes - 1) / kWarpLanes);
  const bool random = sim.config.seed > 1;
  while (sim.n_exited < sim.n_threads) {
    bool progress = false;
    if (random) order.shuffle();
    for (const int warp : order.warps)
      while (run_warp(warp, order)) {
        progress = true;
        if (random && sim.random() % 4 == 0) break;
      }
    if (sim.n_arrived && sim.n_arrived + sim.n_exited == sim.n_threads)
      release_block();
    else if (!progress)
      fail_deadlock();
  }
}

// One guard page below every stack.
inline void reserve_stacks(size_t n) {
  if (sim.n_stacks >= n) return;
  const size_t each = kStackBytes + kPageBytes;
  if (sim.stacks) munmap(sim.stacks, sim.n_stacks * each);
  void* memory = mmap(nullptr, n * each, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw Error("cusim: no memory for the stacks");
  sim.stacks = static_cast<char*>(memory), sim.n_stacks = n;
  for (size_t i = 0; i < n; ++i) mprotect(sim.stacks + i * each, kPageBytes, PROT_NONE);
}

// Shared memory starts as NaN bytes, so that what was never written shows.
inline void fill_shared(size_t bytes) {
  sim.dynamic_shared.reset(bytes ? new char[bytes] : nullptr);
  sim.dynamic_bytes = bytes;
  if (bytes) memset(sim.dynamic_shared.get(), 0xff, bytes);
#ifndef CUSIM_ASAN
  if (__start_cusim_shared)
    memset(__start_cusim_shared, 0xff, size_t(__stop_cusim_shared - __start_cusim_shared));
#endif
}

inline void start_block(dim3 block, size_t shared_bytes) {
  fill_shared(shared_bytes);
  sim.n_exited = sim.n_arrived = 0;
  sim.exception = nullptr;
  start_epoch();
  sim.block_epoch = sim.epoch;
  for (int w = 0; w < kMaxWarps; ++w) {
    const int lanes = std::clamp(sim.n_threads - kWarpLanes * w, 0, kWarpLanes);
    sim.waiting[w] = 0;
    sim.born[w] = sim.live[w] = lanes == kWarpLanes ? ~0u : (1u << lanes) - 1;
  }
  for (int t = 0; t < sim.n_threads; ++t) start_fiber(sim.fibers[size_t(t)], t, block);
}

// Kernels that may have more dynamic shared memory than others, and how much on which device, which
// is told by what its blocks may have at most.
struct SharedLimit {
  size_t bytes, of_device;
};
inline std::map<const void*, SharedLimit> shared_limits;
constexpr size_t kUnlimitedShared = 48 << 10;

// Another thread may be about to launch with the limit that it has set.
inline void limit_shared(const void* kernel, size_t bytes) {
  SharedLimit& limit = shared_limits[kernel];
  if (limit.of_device == sim.config.max_shared_bytes && bytes < limit.bytes)
    throw Error("cusim: a kernel's limit of shared memory was lowered");
  limit = {bytes, sim.config.max_shared_bytes};
}

inline void check_shared(const void* kernel, size_t bytes) {
  const auto limit = shared_limits.find(kernel);
  if (bytes > kUnlimitedShared && (limit == shared_limits.end() || bytes > limit->second.bytes))
    throw Error("cusim: more shared memory than the kernel may have");
}

template <class Body>
void run_grid(dim3 grid, dim3 block, size_t shared_bytes, Body&& body) {
  const size_t n = size_t(block.x) * block.y * block.z;
  if (!n || n > 1024 || block.z > 64 || grid.y > 65535 || grid.z > 65535 || !grid.x || !grid.y ||
      !grid.z || shared_bytes > sim.config.max_shared_bytes)
    throw Error("cusim: invalid launch configuration");
  reserve_stacks(n);
  sim.fibers.resize(n);
  sim.n_threads = int(n);
  blockDim = block, gridDim = grid;
  sim.rng = 0x9E3779B97F4A7C15ull * (sim.config.seed + 1);
  sim.epoch_before = sim.launch_epoch;
  sim.launch_epoch = sim.epoch + 1;
  using BodyType = std::remove_reference_t<Body>;
  sim.body_argument = const_cast<void*>(static_cast<const void*>(&body));
  sim.body = [](void* p) { (*static_cast<BodyType*>(p))(); };
  const uint64_t n_blocks = uint64_t(grid.x) * grid.y * grid.z;
  for (uint64_t i = 0; i < n_blocks; ++i) {
    const uint64_t b = sim.config.seed == 1 ? n_blocks - 1 - i : i;
    blockIdx = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)};
    start_block(block, shared_bytes);
    run_block();
  }
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            Arguments... arguments) {
  check_shared(reinterpret_cast<const void*>(kernel), shared_bytes);
  run_grid(grid, block, shared_bytes, [&] { kernel(arguments...); });
}

}  // namespace cusim
