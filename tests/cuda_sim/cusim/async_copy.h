// Copies that a thread starts and waits for in groups. What they write is undefined from the start
// of a copy until its thread has waited: until then it is NaN bytes. So a wait too few gives wrong
// numbers, and a slab that is filled too early destroys what others still read.
#pragma once

#include "fiber.h"

namespace cusim {

inline void copy_async(void* shared, const void* global) {
  if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % 16 != 0)
    fail("misaligned address of an asynchronous copy: " + where(*sim.current));
  memset(shared, 0xff, 16);
  sim.current->copies.push_back({shared, global, sim.current->groups});
}

inline void close_group() { ++sim.current->groups; }

// Completes all but the latest `left` groups of the thread. Copies of a group that is still open
// are not waited for.
inline void wait_for_groups(int left) {
  Fiber& me = *sim.current;
  std::vector<AsyncCopy> rest;
  for (const AsyncCopy& copy : me.copies) {
    if (copy.group + left < me.groups)
      memcpy(copy.to, copy.from, 16);
    else
      rest.push_back(copy);
  }
  me.copies = std::move(rest);
}

}  // namespace cusim

// As csrc/cuda/async_copy.cuh declares them for nvcc.
namespace hullft {

using cusim::close_group, cusim::copy_async;
using SharedPlace = const uint4*;

inline SharedPlace place_of(const uint4* shared) { return shared; }

template <int kFurther>
void load_shared(SharedPlace place, int index, uint32_t (&words)[4]) {
  memcpy(words, place + index + kFurther, sizeof words);
}

template <int kLeft>
void wait_for_groups() {
  cusim::wait_for_groups(kLeft);
}

}  // namespace hullft
