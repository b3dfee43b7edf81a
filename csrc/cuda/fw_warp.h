// The launch of the Frank-Wolfe kernel in which one warp takes the steps of a query.
#pragma once

#include <driver_types.h>

#include "frank_wolfe.h"

namespace hullft {

constexpr int kWarpCandidates = 256;
constexpr int kFwWarpThreads = 256;  // at most

// Fewer where other queries fill the device, since one warp of them takes the steps.
inline int fw_warp_threads(int64_t batch, int64_t full_device) {
  return batch <= full_device ? kFwWarpThreads : 64;
}

// Pools of at most kWarpCandidates. products [batch, width]: of the rows with their query; grams:
// the Gram matrices, gram_stride elements apart. Both of the type of the outputs.
cudaError_t launch_fw_warp(const FwProblem& problem, const void* products, const void* grams,
                           int64_t gram_stride, int threads, const FwOutputs& outputs,
                           cudaStream_t stream);

}  // namespace hullft
