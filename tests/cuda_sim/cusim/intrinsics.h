// The device functions that the kernels use. Each barrier and warp operation knows its line.
#pragma once

#include <cmath>

#include "collectives.h"

inline void __syncthreads(int line = __builtin_LINE()) {
  cusim::block_sync(0, "__syncthreads", line);
}
inline int __syncthreads_count(int p, int line = __builtin_LINE()) {
  return cusim::block_sync(p, "__syncthreads_count", line).count;
}
inline int __syncthreads_and(int p, int line = __builtin_LINE()) {
  return cusim::block_sync(p, "__syncthreads_and", line).all;
}
inline int __syncthreads_or(int p, int line = __builtin_LINE()) {
  return cusim::block_sync(p, "__syncthreads_or", line).any;
}
inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) {
  int in = 0, out;
  cusim::warp_op(mask, &in, sizeof in, &out, 0, cusim::syncwarp_result, "__syncwarp", line);
}

inline void cudaGridDependencySynchronize() { cusim::wait_for_kernel_before(); }
inline void cudaTriggerProgrammaticLaunchCompletion() {}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int line = __builtin_LINE()) {
  return cusim::shuffle(mask, value, lane & 31, "__shfl_sync", line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int line = __builtin_LINE()) {
  const int from = cusim::sim.current->lane + int(delta);
  return cusim::shuffle(mask, value, from < 32 ? from : from - int(delta), "__shfl_down_sync",
                        line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int line = __builtin_LINE()) {
  return cusim::shuffle(mask, value, (cusim::sim.current->lane ^ lanes) & 31, "__shfl_xor_sync",
                        line);
}

inline unsigned __ballot_sync(unsigned mask, int p, int line = __builtin_LINE()) {
  return cusim::ballot(mask, p, "__ballot_sync", line);
}
inline int __any_sync(unsigned mask, int p, int line = __builtin_LINE()) {
  return cusim::ballot(mask, p, "__any_sync", line) != 0;
}

namespace cusim {
struct Add {
  unsigned operator()(unsigned a, unsigned b) const { return a + b; }
};
struct Max {
  unsigned operator()(unsigned a, unsigned b) const { return a > b ? a : b; }
};
struct Min {
  unsigned operator()(unsigned a, unsigned b) const { return a < b ? a : b; }
};
}  // namespace cusim

inline unsigned __reduce_add_sync(unsigned mask, unsigned value, int line = __builtin_LINE()) {
  return cusim::reduce<cusim::Add>(mask, value, "__reduce_add_sync", line);
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value, int line = __builtin_LINE()) {
  return cusim::reduce<cusim::Max>(mask, value, "__reduce_max_sync", line);
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value, int line = __builtin_LINE()) {
  return cusim::reduce<cusim::Min>(mask, value, "__reduce_min_sync", line);
}

// Fibers never run at the same time, so a plain read-modify-write is atomic.
template <class T>
__attribute__((no_sanitize("thread"))) T atomicAdd(T* p, T value) {
  if (cusim::sim.on_atomic) cusim::sim.on_atomic(p, sizeof(T));
  const T old = *p;
  *p = T(old + value);
  return old;
}

// Through the cache of what no thread of the kernel writes.
template <class T>
T __ldg(const T* p) {
  if (cusim::sim.on_constant_load) cusim::sim.on_constant_load(p);
  return *p;
}

// Products that the compiler may not fuse with what uses them.
inline float __fmul_rn(float a, float b) {
  volatile float product = a * b;
  return product;
}
inline double __dmul_rn(double a, double b) {
  volatile double product = a * b;
  return product;
}

// a b + c, rounded up.
inline float __fmaf_ru(float a, float b, float c) {
  const double product = double(a) * double(b), sum = product + double(c);
  const double added = sum - product;
  const double lost = (product - (sum - added)) + (double(c) - added);
  const float nearest = float(sum);
  const bool below = double(nearest) < sum || (double(nearest) == sum && lost > 0);
  return below ? std::nextafter(nearest, INFINITY) : nearest;
}

namespace cusim {
// What the hardware may make of a number: the nearest one, or that above or below it.
inline float estimate(double exact) {
  const float nearest = float(exact);
  if (exact == 0 || !std::isfinite(nearest)) return nearest;
  uint32_t bits;
  memcpy(&bits, &nearest, sizeof bits);
  bits += (bits * 2654435761u >> 16) % 3 - 1;
  float near;
  memcpy(&near, &bits, sizeof near);
  return near;
}
}  // namespace cusim

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
