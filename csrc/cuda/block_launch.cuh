// How the kernels that solve a query with one block are launched.
#pragma once

#include "pool_view.h"
#include "reduce.cuh"

namespace hullft {

// float64 takes twice the registers.
template <typename S>
constexpr int kMaxThreads = kMaxBlockWarps * kWarp * 4 / int(sizeof(S));

inline int threads_for(int width, Storage storage) {
  if (width <= 128) return 128;
  return width <= 1024 || storage == Storage::kFloat64 ? 256 : kMaxThreads<float>;
}

// The limit belongs to the kernel, on the whole device: were it each launch's own size, a thread
// could lower it between the limit and the launch of another.
template <typename Kernel>
cudaError_t allow_shared(Kernel* kernel, int64_t limit) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(limit));
}

}  // namespace hullft
