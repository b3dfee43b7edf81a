// The directions m / (sqrt(v) + eps) of a thread's elements. Root, sum and quotient are rounded to
// nearest as by IEEE 754. For ordinary numbers they are made without a branch, so that the elements
// of a thread overlap.
#pragma once

#include "../core/from_estimates.h"
#include "device.cuh"

namespace hullft {

template <typename R>
struct DeviceMath {
  __device__ __forceinline__ R fma(R a, R b, R c) const {
    if constexpr (sizeof(R) == 8)
      return ::fma(a, b, c);
    else
      return ::fmaf(a, b, c);
  }
  // Rounding is named: ptxas may fuse two PTX instructions that name none.
  __device__ __forceinline__ R product(R a, R b) const {
    if constexpr (sizeof(R) == 8)
      return __dmul_rn(a, b);
    else
      return __fmul_rn(a, b);
  }
  __device__ __forceinline__ float fma_up(float a, float b, float c) const {
    return __fmaf_ru(a, b, c);
  }
  __device__ __forceinline__ float remainder_of_one(float a, float b) const {  // 1 - a b
    return fma_up(-a, b, 1.0f);
  }
};

// With moments below kLargestMoment in size, or its square, and eps between these bounds, nothing
// on the way to a quotient overflows.
constexpr float kLargestMoment = 0x1p38f;
constexpr float kSmallestEps = 0x1p-45f, kLargestEps = 0x1p38f;

// From here on neither a quotient nor its remainder loses bits below the smallest normal number.
constexpr float kSmallestDividend = 0x1p-80f;

// The hardware's estimates. Their error is below 2^-22 of them.
__device__ __forceinline__ float estimated_reciprocal(float x) {
#if defined(__CUDACC__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return cusim::estimate(1 / double(x));
#endif
}

__device__ __forceinline__ float estimated_reciprocal_root(float x) {
#if defined(__CUDACC__)
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return cusim::estimate(1 / sqrt(double(x)));
#endif
}

// sqrt(v) + eps. We take the root of 2^40 v, so that no bit of its square is lost. Where v is below
// 2^-141 the root may be another one: beside an ordinary eps neither counts.
__device__ __forceinline__ float quick_divisor(float v, float eps) {
  constexpr float kScale = 0x1p40f, kRootScale = 0x1p-20f, kSmallest = 0x1p-101f;
  const DeviceMath<float> math;
  const float scaled = math.product(v, kScale);
  const float y = estimated_reciprocal_root(fmaxf(scaled, kSmallest));
  return fmaf(root_from_estimate(scaled, y, math), kRootScale, eps);
}

__device__ __forceinline__ float quick_quotient(float a, float b) {
  const DeviceMath<float> math;
  const float y = reciprocal_from_estimate(b, estimated_reciprocal(b), math);
  return quotient_from_reciprocal(a, b, y, math);
}

// Whether moments and gradients are ordinary. Moments stay so in steps with such gradients.
template <int kCount>
__device__ __forceinline__ bool are_ordinary(const float (&m)[kCount], const float (&v)[kCount],
                                             const float (&grad)[kCount]) {
  float size = 0;
  uint32_t square = 0;  // the bits of a negative number are larger than all others
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    size = fmaxf(fmaxf(size, fabsf(m[j])), fabsf(grad[j]));
    const uint32_t bits = float_to_bits(v[j]);
    square = bits > square ? bits : square;
  }
  return (size < kLargestMoment) & (square < float_to_bits(kLargestMoment * kLargestMoment));
}

// float64 is always divided.
template <int kCount>
__device__ __forceinline__ bool are_ordinary(const double (&)[kCount], const double (&)[kCount],
                                             const double (&)[kCount]) {
  return false;
}

// False if a number in it is too small, but not 0.
template <int kCount>
__device__ __forceinline__ bool are_dividends(const float (&m)[kCount]) {
  uint32_t smallest = ~0u;
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    const uint32_t size = 2 * float_to_bits(m[j]) - 1;  // without the sign; 0 is the largest
    smallest = size < smallest ? size : smallest;
  }
  return smallest >= 2 * float_to_bits(kSmallestDividend) - 1;
}

// `ordinary`: as are_ordinary says of m and v.
template <int kCount>
__device__ __forceinline__ void make_directions(const float (&m)[kCount], const float (&v)[kCount],
                                                float eps, bool ordinary,
                                                float (&directions)[kCount]) {
#pragma unroll
  for (int j = 0; j < kCount; ++j) directions[j] = quick_quotient(m[j], quick_divisor(v[j], eps));
  if (ordinary & (eps >= kSmallestEps) & (eps < kLargestEps) & are_dividends(m)) return;
#pragma unroll
  for (int j = 0; j < kCount; ++j) directions[j] = m[j] / (sqrtf(v[j]) + eps);
}

template <int kCount>
__device__ __forceinline__ void make_directions(const double (&m)[kCount],
                                                const double (&v)[kCount], double eps, bool,
                                                double (&directions)[kCount]) {
#pragma unroll
  for (int j = 0; j < kCount; ++j) directions[j] = m[j] / (sqrt(v[j]) + eps);
}

}  // namespace hullft
