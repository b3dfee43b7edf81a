// What every entry point of the simulated library shares. Each takes plain pointers from ctypes,
// copies them to buffers of their exact size, so that AddressSanitizer and the race checker see
// both ends, launches, and copies back.
#pragma once

#include <driver_types.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cuda/frank_wolfe.h"
#include "cusim.h"
#ifdef CUSIM_RACE
#include "race.h"
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace driver {

struct Schedule {
  unsigned seed;
  int64_t max_shared_bytes, max_workspace_bytes, sms, rounds;

  hullft::LaunchLimits limits() const {
    return {max_shared_bytes, sms, max_workspace_bytes, rounds};
  }
};

inline std::string& last_error() {
  static std::string message;
  return message;
}

// A device buffer: read-only if it was made from data, and none at all if from is null.
class Buffer {
 public:
  Buffer(const char* name, const void* from, int64_t bytes) {
    if (!from) return;
    allocate(name, bytes, true);
    memcpy(data_, from, size_t(bytes));
  }
  // What a kernel forgets to write shows as NaN or -1.
  Buffer(const char* name, int64_t bytes) {
    allocate(name, bytes, false);
    memset(data_, 0xff, size_t(bytes));
  }

  template <typename T = void>
  T* get() const {
    return reinterpret_cast<T*>(data_);
  }
  void copy_to(void* to) const { memcpy(to, data_, size_t(bytes_)); }

 private:
  void allocate([[maybe_unused]] const char* name, int64_t bytes, [[maybe_unused]] bool read_only) {
    bytes_ = bytes;
#ifdef __SANITIZE_ADDRESS__
    // A wrong row's index lands further away than the margins AddressSanitizer leaves by itself.
    const size_t margin = (size_t(bytes) + 4096) / 16 * 16;
    block_.reset(new char[margin + size_t(bytes) + margin]);
    data_ = block_.get() + margin;
    ASAN_POISON_MEMORY_REGION(block_.get(), margin);
    ASAN_POISON_MEMORY_REGION(data_ + bytes, margin);
#else
    block_.reset(new char[size_t(bytes)]);
    data_ = block_.get();
#endif
#ifdef CUSIM_RACE
    cusim::race::add(data_, size_t(bytes), name, read_only);
#endif
  }

  std::unique_ptr<char[]> block_;
  char* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Runs body under the schedule; nullptr, or what went wrong.
template <typename Body>
const char* run(const Schedule& schedule, const Body& body) {
  cusim::sim.config.seed = schedule.seed;
  cusim::sim.config.max_shared_bytes = size_t(schedule.max_shared_bytes);
  cusim::sim.config.sms = int(schedule.sms);
#ifdef CUSIM_RACE
  cusim::race::clear();
#endif
  try {
    const cudaError_t status = body();
    if (status == cudaSuccess) return nullptr;
    last_error() = "cudaError " + std::to_string(int(status));
  } catch (const std::exception& e) {
    last_error() = e.what();
  }
  return last_error().c_str();
}

}  // namespace driver
