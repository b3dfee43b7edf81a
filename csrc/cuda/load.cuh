// Loads that widen the storage type to the type of the arithmetic, 16 bytes at a time.
#pragma once

#include "../core/dtypes.h"
#include "device.cuh"

namespace hullft {

template <typename T>
constexpr int kVector = 16 / int(sizeof(T));

template <typename S>
__device__ __forceinline__ S widen_to(S x) {
  return x;
}
template <typename S>
__device__ __forceinline__ S widen_to(BFloat16 x) {
  return S(to_float(x));
}
template <typename S>
__device__ __forceinline__ S widen_to(Float16 x) {
#if defined(__CUDA_ARCH__)
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return S(wide);
#else
  return S(to_float(x));
#endif
}

// p must be a multiple of 16 bytes.
template <int kCount, typename S, typename T>
__device__ __forceinline__ void load_wide(const T* p, S (&out)[kCount]) {
  static_assert(kCount % kVector<T> == 0, "whole vectors only");
#pragma unroll
  for (int i = 0; i < kCount; i += kVector<T>) {
    const uint4 raw = *reinterpret_cast<const uint4*>(p + i);
    T values[kVector<T>];
    memcpy(values, &raw, sizeof raw);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) out[i + j] = widen_to<S>(values[j]);
  }
}

}  // namespace hullft
