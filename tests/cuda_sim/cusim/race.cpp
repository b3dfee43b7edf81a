// Two accesses race if they touch one byte, one of them writes, not both are atomic, and no barrier
// orders them: __syncthreads for a block, __syncwarp of all live lanes for a warp. Shuffles order
// nothing, as in CUDA, and blocks of one launch are never ordered, nor is what an early launch does
// before its wait and the launch before. Independent of the schedule.
//
// The kernels' file is compiled with `clang++ -fsanitize=thread` and linked WITHOUT it: the
// compiler puts a call __tsan_readN or __tsan_writeN at every load and store, and the functions
// below answer these calls instead of libtsan. This file is compiled without it.
#include "race.h"

#include <dlfcn.h>

#include <algorithm>
#include <bitset>

#include "cusim.h"

extern "C" __attribute__((visibility("hidden"))) char __ehdr_start;  // by the linker

namespace cusim::race {
namespace {

// One for each byte and access that must be remembered: the smaller, the faster.
struct Access {
  uint32_t epoch, warp_epoch;
  uint32_t pc;  // from the start of the library
  uint16_t thread;
  bool atomic;

  bool of_this_block() const { return epoch >= sim.block_epoch; }
};

struct Byte {
  Access write, reads[2];
};

struct Region {
  const char* p;
  size_t bytes;
  const char* name;
  bool read_only, shared;
  std::vector<Byte> log;
};

std::vector<Region> regions;  // by address
Region dynamic_shared;        // of the block
bool checking = false;

// A bit for every 256 bytes that hold a part of a region, by the lower bits of their address. Most
// accesses are to a thread's own stack and to the simulator's data, where nearly all bits are 0.
constexpr size_t kPieceBytes = 256;
std::bitset<1 << 16> watched;

size_t piece_of(const void* p) { return reinterpret_cast<uintptr_t>(p) / kPieceBytes; }

void watch(const void* p, size_t n) {
  const char* last = static_cast<const char*>(p) + n - 1;
  for (size_t i = piece_of(p); n && i <= piece_of(last); ++i) watched.set(i % watched.size());
}

size_t offset_in(const Region& region, const void* p) {
  return size_t(static_cast<const char*>(p) - region.p);
}

auto first_after(const void* p) {
  return std::upper_bound(regions.begin(), regions.end(), static_cast<const char*>(p),
                          [](const char* address, const Region& r) { return address < r.p; });
}

bool is_in_dynamic_shared(const void* p) {
  dynamic_shared.p = sim.dynamic_shared.get();
  return offset_in(dynamic_shared, p) < sim.dynamic_bytes;
}

Region* region_of(const void* p) {
  if (is_in_dynamic_shared(p)) {
    dynamic_shared.bytes = sim.dynamic_bytes;
    if (dynamic_shared.log.size() < sim.dynamic_bytes) dynamic_shared.log.resize(sim.dynamic_bytes);
    return &dynamic_shared;
  }
  const auto after = first_after(p);
  if (after == regions.begin()) return nullptr;
  Region& region = *std::prev(after);
  return offset_in(region, p) < region.bytes ? &region : nullptr;
}

std::string line_of(uint32_t pc) {
  Dl_info info;
  char text[400] = "?";
  if (!dladdr(&__ehdr_start, &info)) return text;
  char command[600];
  snprintf(command, sizeof command, "addr2line -s -e '%s' %#zx 2>/dev/null", info.dli_fname,
           size_t(pc) - 1);
  if (FILE* f = popen(command, "r")) {
    if (fgets(text, sizeof text, f)) text[strcspn(text, "\n ")] = 0;
    pclose(f);
  }
  return text;
}

std::string describe(const Access& a, const char* verb) {
  return "thread " + std::to_string(a.thread) + (a.of_this_block() ? "" : " of another block") +
         verb + line_of(a.pc);
}

// True if a, made earlier, is not ordered before b.
bool unordered(const Access& a, const Access& b) {
  if (a.epoch < sim.launch_epoch) return !sim.current->has_waited && a.epoch >= sim.epoch_before;
  if (!a.of_this_block()) return true;
  if (a.epoch != b.epoch || a.thread == b.thread) return false;
  return !(a.thread / kWarpLanes == b.thread / kWarpLanes && a.warp_epoch != b.warp_epoch);
}

class Check {
 public:
  Check(Region& region, size_t offset, const Access& access, bool write)
      : region_(region), offset_(offset), access_(access), write_(write) {}

  void byte(size_t at) const {
    Byte& log = region_.log[at];
    const bool written_here = !region_.shared || log.write.of_this_block();
    if (!written_here && !write_ && at == offset_)
      report("read of uninitialised ", describe(access_, " reads at "));
    if (written_here && unordered(log.write, access_) && !(access_.atomic && log.write.atomic))
      report("race on ", describe(access_, write_ ? " writes at " : " reads at ") + ", " +
                             describe(log.write, " wrote at "));
    if (write_)
      note_write(log);
    else
      note_read(log);
  }

 private:
  [[noreturn]] void report(const char* what, const std::string& who) const {
    fail(what + std::string(region_.name) + "+" + std::to_string(offset_) + ": " + who);
  }

  void note_write(Byte& log) const {
    for (const Access& read : log.reads)
      if (!(region_.shared && !read.of_this_block()) && unordered(read, access_))
        report("race on ", describe(access_, " writes at ") + ", " + describe(read, " read at "));
    log.write = access_;
  }

  // Two concurrent readers are kept: any later writer races with at least one of them.
  void note_read(Byte& log) const {
    Access* slot = &log.reads[1];
    if (!unordered(log.reads[0], access_)) slot = &log.reads[0];
    if (slot == &log.reads[0] || !unordered(log.reads[1], access_) ||
        log.reads[1].thread == log.reads[0].thread)
      *slot = access_;
  }

  Region& region_;
  size_t offset_;
  const Access& access_;
  bool write_;
};

[[gnu::noinline]] void check(const void* p, size_t n, bool write, bool atomic, void* pc) {
  Region* region = region_of(p);
  if (!region || (region->read_only && !write)) return;  // reads alone do not race
  const size_t offset = offset_in(*region, p);
  const Access access{
      .epoch = sim.epoch,
      .warp_epoch = sim.warp_epoch[sim.current->warp],
      .pc = uint32_t(static_cast<char*>(pc) - &__ehdr_start),
      .thread = uint16_t(sim.current->thread),
      .atomic = atomic,
  };
  if (region->read_only)
    fail("write to read-only buffer " + std::string(region->name) + "+" + std::to_string(offset) +
         ": " + describe(access, " writes at "));
  const Check checker(*region, offset, access, write);
  for (size_t at = offset; at < offset + n && at < region->bytes; ++at) checker.byte(at);
}

void on_access(const void* p, size_t n, bool write, bool atomic, void* pc) {
  if (!checking || !sim.current) return;
  if (!watched[piece_of(p) % watched.size()] && !is_in_dynamic_shared(p)) return;
  checking = false;  // not re-entered; a report leaves it so
  check(p, n, write, atomic, pc);
  checking = true;
}

}  // namespace

void clear() {
  regions.clear();
  watched.reset();
  checking = true;
  sim.on_atomic = [](void* p, size_t n) {
    on_access(p, n, true, true, __builtin_return_address(0));
  };
  sim.on_constant_load = [](const void* p) {
    const Region* region = region_of(p);
    if (region && !region->read_only)
      fail("constant load of " + std::string(region->name) + ", which kernels write");
  };
  dynamic_shared = {nullptr, 0, "dynamic __shared__", false, true, {}};
  if (!__start_cusim_shared) return;
  const size_t n = size_t(__stop_cusim_shared - __start_cusim_shared);
  watch(__start_cusim_shared, n);
  regions.push_back(
      {__start_cusim_shared, n, "static __shared__", false, true, std::vector<Byte>(n)});
}

void add(const void* p, size_t n, const char* name, bool read_only) {
  watch(p, n);
  std::vector<Byte> log(read_only ? 0 : n);
  regions.insert(first_after(p),
                 {static_cast<const char*>(p), n, name, read_only, false, std::move(log)});
}

}  // namespace cusim::race

#define CUSIM_HOOK(name, n, write) \
  void name(void* p) { cusim::race::on_access(p, n, write, false, __builtin_return_address(0)); }
#define CUSIM_HOOKS(n)                           \
  CUSIM_HOOK(__tsan_read##n, n, false)           \
  CUSIM_HOOK(__tsan_write##n, n, true)           \
  CUSIM_HOOK(__tsan_unaligned_read##n, n, false) \
  CUSIM_HOOK(__tsan_unaligned_write##n, n, true)

extern "C" {
CUSIM_HOOKS(1)
CUSIM_HOOKS(2)
CUSIM_HOOKS(4)
CUSIM_HOOKS(8)
CUSIM_HOOKS(16)
// The guards of function-local statics.
char __tsan_atomic8_load(const volatile char* p, int) {
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(void* p, unsigned long n) {
  cusim::race::on_access(p, n, false, false, __builtin_return_address(0));
}
void __tsan_write_range(void* p, unsigned long n) {
  cusim::race::on_access(p, n, true, false, __builtin_return_address(0));
}
void* __tsan_memcpy(void* to, const void* from, size_t n) {
  cusim::race::on_access(from, n, false, false, __builtin_return_address(0));
  cusim::race::on_access(to, n, true, false, __builtin_return_address(0));
  return memcpy(to, from, n);
}
void* __tsan_memset(void* to, int value, size_t n) {
  cusim::race::on_access(to, n, true, false, __builtin_return_address(0));
  return memset(to, value, n);
}
void* __tsan_memmove(void* to, const void* from, size_t n) {
  cusim::race::on_access(from, n, false, false, __builtin_return_address(0));
  cusim::race::on_access(to, n, true, false, __builtin_return_address(0));
  return memmove(to, from, n);
}
}
