// The CUDA keywords as plain C++, and the types of the toolkit's headers.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#define CUSIM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUSIM_ASAN 1
#endif
#endif

#include <driver_types.h>
#include <vector_functions.h>
#include <vector_types.h>

// The toolkit's headers define the keywords for nvcc.
#undef __shared__
#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __forceinline__

// Kernels are static functions: the __shared__ variables of a template kernel would be COMDAT
// otherwise, which AddressSanitizer gives no redzones and g++ refuses in a named section. The
// section lets every block start with __shared__ full of NaN bytes. Under AddressSanitizer it is
// left out, because variables of a named section get no redzones either.
#ifdef CUSIM_ASAN
#define __shared__ static
#else
#define __shared__ static __attribute__((section("cusim_shared")))
extern "C" char __start_cusim_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_cusim_shared[] __attribute__((weak, visibility("hidden")));
#endif
#define __global__ static
#define __device__
#define __host__
#define __constant__ static
#define __launch_bounds__(...)
#define __forceinline__ inline

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;
