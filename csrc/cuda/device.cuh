// The one place that knows whether nvcc or the simulator of tests/cuda_sim compiles the kernels.
#pragma once

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define HULLFT_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)
#define HULLFT_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#else
#include "cusim.h"
#define HULLFT_LAUNCH CUSIM_LAUNCH
#define HULLFT_DYNAMIC_SHARED(name) \
  unsigned char* name = reinterpret_cast<unsigned char*>(CUSIM_DYNAMIC_SHARED())
#endif

namespace hullft {

constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

}  // namespace hullft
