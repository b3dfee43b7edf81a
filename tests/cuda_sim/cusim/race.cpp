// Two accesses race if they touch one byte, one of them writes, not both are atomic, and no barrier
// orders them: __syncthreads for a block, __syncwarp of all live lanes for a warp. Shuffles order
// nothing, as in CUDA, and blocks of one launch are never ordered. Independent of the schedule.
//
// The kernels' file is compiled with `clang++ -fsanitize=thread` and linked WITHOUT it: the
// compiler puts a call __tsan_readN or __tsan_writeN at every load and store, and the functions
// below answer these calls instead of libtsan. This file is compiled without it.
#include "race.h"

#include <dlfcn.h>

#include "cusim.h"

namespace cusim::race {
namespace {

struct Access {
  uint32_t launch, block, epoch, warp_epoch;
  int thread;
  bool atomic;
  void* pc;
};

struct Byte {
  Access write, reads[2];
};

struct Region {
  const char* p;  // null: the dynamic shared memory of the block
  size_t bytes;
  const char* name;
  bool read_only, shared;
  std::vector<Byte> log;
};

std::vector<Region> regions;
bool checking = false;

std::string line_of(void* pc) {
  Dl_info info;
  char text[400] = "?";
  if (!dladdr(pc, &info)) return text;
  char command[600];
  snprintf(command, sizeof command, "addr2line -s -e '%s' %#zx 2>/dev/null", info.dli_fname,
           size_t(static_cast<char*>(pc) - static_cast<char*>(info.dli_fbase)) - 1);
  if (FILE* f = popen(command, "r")) {
    if (fgets(text, sizeof text, f)) text[strcspn(text, "\n ")] = 0;
    pclose(f);
  }
  return text;
}

std::string describe(const Access& a, const char* verb) {
  return "thread " + std::to_string(a.thread) + (a.block == sim.block ? "" : " of another block") +
         verb + line_of(a.pc);
}

// True if a, made earlier, is not ordered before b.
bool unordered(const Access& a, const Access& b) {
  if (a.launch != b.launch) return false;
  if (a.block != b.block) return true;
  if (a.epoch != b.epoch || a.thread == b.thread) return false;
  return !(a.thread / kWarpLanes == b.thread / kWarpLanes && a.warp_epoch != b.warp_epoch);
}

class Check {
 public:
  Check(Region& region, size_t offset, const Access& access, bool write)
      : region_(region), offset_(offset), access_(access), write_(write) {}

  void byte(size_t at) const {
    Byte& log = region_.log[at];
    const bool written_here = !region_.shared || log.write.block == access_.block;
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
      if (!(region_.shared && read.block != access_.block) && unordered(read, access_))
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

void check(const void* p, size_t n, bool write, bool atomic, void* pc) {
  for (Region& region : regions) {
    const char* base = region.p;
    size_t bytes = region.bytes;
    if (!base) {
      base = sim.dynamic_shared.get(), bytes = sim.dynamic_bytes;
      if (region.log.size() < bytes) region.log.resize(bytes);
    }
    const size_t offset = size_t(static_cast<const char*>(p) - base);
    if (offset >= bytes) continue;
    const Access access{
        sim.launch,          sim.block, sim.epoch, sim.warp_epoch[sim.current->warp],
        sim.current->thread, atomic,    pc};
    if (write && region.read_only)
      fail("write to read-only buffer " + std::string(region.name) + "+" + std::to_string(offset) +
           ": " + describe(access, " writes at "));
    const Check checker(region, offset, access, write);
    for (size_t at = offset; at < offset + n && at < bytes; ++at) checker.byte(at);
    return;
  }
}

void on_access(const void* p, size_t n, bool write, bool atomic, void* pc) {
  if (!checking || !sim.current) return;
  checking = false;  // not re-entered; a report leaves it so
  check(p, n, write, atomic, pc);
  checking = true;
}

}  // namespace

void clear() {
  regions.clear();
  checking = true;
  sim.on_atomic = [](void* p, size_t n) {
    on_access(p, n, true, true, __builtin_return_address(0));
  };
  regions.push_back({nullptr, 0, "dynamic __shared__", false, true, {}});
  if (!__start_cusim_shared) return;
  const size_t n = size_t(__stop_cusim_shared - __start_cusim_shared);
  regions.push_back(
      {__start_cusim_shared, n, "static __shared__", false, true, std::vector<Byte>(n)});
}

void add(const void* p, size_t n, const char* name, bool read_only) {
  regions.push_back({static_cast<const char*>(p), n, name, read_only, false, std::vector<Byte>(n)});
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
