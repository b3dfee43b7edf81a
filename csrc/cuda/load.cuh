// Loads that widen the storage type to the type of the arithmetic, up to 16 bytes at a time.
#pragma once

#include <type_traits>

#include "../core/arithmetic.h"
#include "../core/dtypes.h"
#include "device.cuh"
#include "pool_view.h"

namespace hullft {

template <typename T>
constexpr int kVector = 16 / int(sizeof(T));

// What one load or store moves of kCount elements that lie side by side.
template <typename T, int kCount>
using Word = std::conditional_t<kCount * sizeof(T) % 16 == 0, uint4,
                                std::conditional_t<kCount * sizeof(T) == 8, uint2, uint32_t>>;

// body(T{}) for the storage type, on the host: which kernel of a template.
template <typename Body>
auto for_narrow_storage(Storage storage, const Body& body) {
  switch (storage) {
    case Storage::kBFloat16:
      return body(BFloat16{});
    case Storage::kFloat16:
      return body(Float16{});
    default:
      return body(float{});
  }
}

template <typename Body>
auto for_storage(Storage storage, const Body& body) {
  return storage == Storage::kFloat64 ? body(double{}) : for_narrow_storage(storage, body);
}

// Hides from the compiler how a pointer to global memory was made, so that it keeps the pointer and
// not its parts: nvcc 13.0 would add the parts up anew for each load.
template <typename T>
__device__ __forceinline__ T* opaque(T* p) {
#if defined(__CUDA_ARCH__)
  asm("" : "+l"(p));
  __builtin_assume(__isGlobal(p));  // or its loads would ask which memory they read
#endif
  return p;
}

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

// p must be a multiple of the word's size.
template <int kCount, typename S, typename T>
__device__ __forceinline__ void load_words(const T* p, S* out) {
  constexpr int kStep = int(sizeof(Word<T, kCount>) / sizeof(T));
  static_assert(kCount % kStep == 0, "whole words only");
#pragma unroll
  for (int i = 0; i < kCount; i += kStep) {
    const auto raw = *reinterpret_cast<const Word<T, kCount>*>(p + i);
    T values[kStep];
    memcpy(values, &raw, sizeof raw);
#pragma unroll
    for (int j = 0; j < kStep; ++j) out[i + j] = widen_to<S>(values[j]);
  }
}

}  // namespace hullft
