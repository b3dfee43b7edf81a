// Reductions of a warp and of a block, in an order that depends on nothing but the thread's number.
#pragma once

#include <cstdint>
#include <cstring>

#include "../core/dtypes.h"
#include "device.cuh"

namespace hullft {

constexpr int kMaxBlockWarps = 16;
constexpr int kNoIndex = 0x7fffffff;

// Every lane gets the same bits: the butterfly adds the same two numbers on both sides.
template <typename S>
__device__ __forceinline__ S warp_sum(S value) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
    value += __shfl_xor_sync(kFullWarp, value, lanes);
  return value;
}

// The largest value seen, the lowest index on ties.
template <typename S>
struct Best {
  S value;
  int index;
};

template <typename S>
__device__ __forceinline__ Best<S> no_best() {
  return {-S(INFINITY), kNoIndex};
}

template <typename S>
__device__ __forceinline__ void see(Best<S>& best, S value, int index) {
  if (value > best.value || (value == best.value && index < best.index)) best = {value, index};
}

// Unsigned integers that are ordered as the floats are.
__device__ __forceinline__ uint32_t ordered_bits(float x) {
  const uint32_t bits = float_to_bits(x + 0.0f);  // -0 becomes +0: they tie
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float from_ordered_bits(uint32_t key) {
  return bits_to_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

__device__ __forceinline__ uint64_t ordered_bits(double x) {
  uint64_t bits;
  x += 0.0;
  memcpy(&bits, &x, sizeof x);
  return bits >> 63 ? ~bits : bits | uint64_t(1) << 63;
}
__device__ __forceinline__ double from_ordered_bits(uint64_t key) {
  const uint64_t bits = key >> 63 ? key & ~(uint64_t(1) << 63) : ~key;
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// The largest value of a warp, and whether it is the lane's.
template <typename T>
struct WarpTop {
  T value;
  bool here;
};

// One integer reduction in hardware (sm_80 and up) instead of five shuffles.
__device__ __forceinline__ WarpTop<float> warp_top(float mine) {
  const uint32_t key = ordered_bits(mine);
  const uint32_t top = __reduce_max_sync(kFullWarp, key);
  return {from_ordered_bits(top), key == top};
}

// The same by the upper half of the key, and by the lower half among the lanes that have the upper.
__device__ __forceinline__ WarpTop<double> warp_top(double mine) {
  const uint64_t key = ordered_bits(mine);
  const uint32_t upper = uint32_t(key >> 32), lower = uint32_t(key);
  const uint32_t top = __reduce_max_sync(kFullWarp, upper);
  const uint32_t under = __reduce_max_sync(kFullWarp, upper == top ? lower : 0);
  return {from_ordered_bits(uint64_t(top) << 32 | under), upper == top && lower == under};
}

// The lowest index of the lanes that have one.
__device__ __forceinline__ int warp_lowest(bool has, int index) {
  return int(__reduce_min_sync(kFullWarp, has ? uint32_t(index) : uint32_t(kNoIndex)));
}

template <typename T>
__device__ __forceinline__ Best<T> warp_best(Best<T> mine) {
  const WarpTop<T> top = warp_top(mine.value);
  return {top.value, warp_lowest(top.here, mine.index)};
}

// Shared memory for the reductions of one block.
struct BlockScratch {
  double sums[kMaxBlockWarps];
  double values[kMaxBlockWarps];
  int indices[kMaxBlockWarps];
};

// The functions below are called by all threads of the block and give all of them the result.
struct BlockThread {
  int thread, lane, warp, n_threads, n_warps;

  __device__ __forceinline__ BlockThread()
      : thread(int(threadIdx.x)),
        lane(int(threadIdx.x) % kWarp),
        warp(int(threadIdx.x) / kWarp),
        n_threads(int(blockDim.x)),
        n_warps(int(blockDim.x) / kWarp) {}
};

template <typename S>
__device__ __forceinline__ double block_sum(S value, BlockScratch& scratch, const BlockThread& me) {
  const S of_warp = warp_sum(value);
  if (me.lane == 0) scratch.sums[me.warp] = double(of_warp);
  __syncthreads();
  double total = 0;
  for (int w = 0; w < me.n_warps; ++w) total += scratch.sums[w];
  __syncthreads();
  return total;
}

// The caller synchronises before it calls this again.
__device__ __forceinline__ Best<double> block_best(Best<double> mine, BlockScratch& scratch,
                                                   const BlockThread& me) {
  const Best<double> of_warp = warp_best(mine);
  if (me.lane == 0) {
    scratch.values[me.warp] = of_warp.value;
    scratch.indices[me.warp] = of_warp.index;
  }
  __syncthreads();
  Best<double> best = no_best<double>();
  for (int w = 0; w < me.n_warps; ++w) see(best, scratch.values[w], scratch.indices[w]);
  return best;
}

}  // namespace hullft
