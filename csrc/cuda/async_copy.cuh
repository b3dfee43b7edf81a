// Copies of 16 bytes from global to shared memory that go on while their thread works (cp.async).
// A thread closes groups of them and waits for all but the latest; a barrier shows the others what
// has arrived.
#pragma once

#include <cstdint>

#include "device.cuh"

namespace hullft {

#if defined(__CUDACC__)  // the simulator has its own: tests/cuda_sim/cusim/async_copy.h

// Both addresses are multiples of 16. Past L1: no other block of the SM reads these rows.
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
               :
               : "r"(unsigned(__cvta_generic_to_shared(shared))), "l"(global)
               : "memory");
}

__device__ __forceinline__ void close_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until at most kLeft groups of this thread are under way.
template <int kLeft>
__device__ __forceinline__ void wait_for_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// Where 16 bytes lie in shared memory: 32 bits that nvcc keeps in a register. It would make an
// address from a pointer anew for every load (nvcc 13.0).
using SharedPlace = uint32_t;

__device__ __forceinline__ SharedPlace place_of(const uint4* shared) {
  SharedPlace place = SharedPlace(__cvta_generic_to_shared(shared));
  asm volatile("" : "+r"(place));
  return place;
}

// The vector `kFurther` vectors behind place + index.
template <int kFurther>
__device__ __forceinline__ void load_shared(SharedPlace place, int index, uint32_t (&words)[4]) {
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4 + %5];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(place + unsigned(index) * 16), "n"(kFurther * 16)
               : "memory");
}

#endif

}  // namespace hullft
