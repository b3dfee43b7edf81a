// How the kernels that solve a query with one block are launched.
#pragma once

#include <algorithm>

#include "plan.h"
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

// Fewer where other queries fill the device, since one warp of a block takes the steps. An SM has
// registers for kMaxThreads, and room for so many blocks as their state allows.
inline int solver_threads(int width, Storage storage, int64_t batch, int64_t shared_bytes,
                          const LaunchLimits& limits) {
  const int threads_of_sm = storage == Storage::kFloat64 ? kMaxThreads<double> : kMaxThreads<float>;
  constexpr int64_t kFixedBytes = 2048;  // what else a block takes
  const int most = threads_for(width, storage);
  if (batch <= limits.full_device()) return most;
  const int64_t blocks = std::max<int64_t>(limits.shared_bytes / (shared_bytes + kFixedBytes), 1);
  const int64_t warps = (threads_of_sm / kWarp + blocks - 1) / blocks;
  return int(std::min<int64_t>(warps * kWarp, most));
}

// The limit belongs to the kernel, on the whole device: were it each launch's own size, a thread
// could lower it between the limit and the launch of another.
template <typename Kernel>
cudaError_t allow_shared(Kernel* kernel, int64_t limit) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(limit));
}

}  // namespace hullft
