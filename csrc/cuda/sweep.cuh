// A block's part of a sweep, and loads and stores of a few elements of any storage type.
#pragma once

#include <type_traits>

#include "load.cuh"
#include "multi_tensor.h"
#include "pool_view.h"

namespace hullft {

// Elements that a thread takes at a time: what fits its registers four times over.
template <typename R>
constexpr int kSweepVector = sizeof(R) == 8 ? 4 : 8;

template <typename R>
constexpr int64_t kSweepTile = int64_t(kSweepThreads) * kSweepVector<R>;

template <typename R>
using SweepVector = R[kSweepVector<R>];

// Whether whole vectors of 16 bytes make up those elements.
template <typename T, typename R>
constexpr bool kSweepsVectors = kSweepVector<R> % kVector<T> == 0;

template <typename T, typename R>
__device__ __forceinline__ T narrow_to(R x) {
  if constexpr (sizeof(T) == sizeof(BFloat16)) {
#if defined(__CUDA_ARCH__)
    T narrow;
    const float single = float(x);
    if constexpr (std::is_same_v<T, BFloat16>)
      asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(single));
    else
      asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(single));
    return narrow;
#else
    if constexpr (std::is_same_v<T, BFloat16>)
      return to_bfloat16(float(x));
    else
      return to_float16(float(x));
#endif
  } else {
    return T(x);
  }
}

template <typename T>
__device__ __forceinline__ bool starts_vector(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// Elements p[0] .. p[count - 1], zeros past them.
template <typename R, typename T>
__device__ __forceinline__ void load_sweep(const T* p, int count, SweepVector<R>& out) {
  if constexpr (kSweepsVectors<T, R>)
    if (count == kSweepVector<R> && starts_vector(p)) return load_wide(p, out);
#pragma unroll
  for (int j = 0; j < kSweepVector<R>; ++j) out[j] = j < count ? widen_to<R>(p[j]) : R(0);
}

template <typename R, typename T>
__device__ __forceinline__ void store_narrow(T* p, int count, const T (&narrow)[kSweepVector<R>]) {
  if constexpr (kSweepsVectors<T, R>) {
    if (count == kSweepVector<R> && starts_vector(p)) {
#pragma unroll
      for (int j = 0; j < kSweepVector<R>; j += kVector<T>) {
        uint4 raw;
        memcpy(&raw, narrow + j, sizeof raw);
        *reinterpret_cast<uint4*>(p + j) = raw;
      }
      return;
    }
  }
#pragma unroll
  for (int j = 0; j < kSweepVector<R>; ++j)
    if (j < count) p[j] = narrow[j];
}

template <typename R, typename T>
__device__ __forceinline__ void store_sweep(T* p, int count, const SweepVector<R>& values) {
  T narrow[kSweepVector<R>];
#pragma unroll
  for (int j = 0; j < kSweepVector<R>; ++j) narrow[j] = narrow_to<T>(values[j]);
  store_narrow<R>(p, count, narrow);
}

// The same for a gradient whose type is known at run time alone.
template <typename R>
__device__ __forceinline__ void load_sweep(const void* p, Storage type, int64_t offset, int count,
                                           SweepVector<R>& out) {
  switch (type) {
    case Storage::kFloat64:
      return load_sweep(static_cast<const double*>(p) + offset, count, out);
    case Storage::kBFloat16:
      return load_sweep(static_cast<const BFloat16*>(p) + offset, count, out);
    case Storage::kFloat16:
      return load_sweep(static_cast<const Float16*>(p) + offset, count, out);
    default:
      return load_sweep(static_cast<const float*>(p) + offset, count, out);
  }
}

// The entry whose block this is, and its first element in it.
struct SweepPlace {
  int entry;
  int64_t start;
};

template <typename Entry>
__device__ __forceinline__ SweepPlace sweep_place(const SweepBatch<Entry>& batch) {
  int low = 0, high = batch.n;  // the entry is in low .. high - 1
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (batch.first_block[middle] <= blockIdx.x)
      low = middle;
    else
      high = middle;
  }
  return {low, int64_t(blockIdx.x - batch.first_block[low]) * kSweepChunk};
}

// How many of the elements at `at` this thread has.
template <typename R>
__device__ __forceinline__ int sweep_count(int64_t at, int64_t numel) {
  const int64_t left = numel - at;
  return left <= 0 ? 0 : left < kSweepVector<R> ? int(left) : kSweepVector<R>;
}

}  // namespace hullft
