// Frank-Wolfe selection of a batch, with its integer counts: its launch and its memory.
#pragma once

#include <driver_types.h>

#include "../core/frank_wolfe.h"
#include "plan.h"

namespace hullft {

struct FwProblem {
  PoolView pool;
  QueryView query;
  int64_t batch;
  int n_select;     // units, and the width of the outputs
  int max_support;  // rows, at most n_select
  int max_iter, swap_passes;
  double tol, gap_tol;
  Variant variant;
  bool dense = false;  // weights for all rows, of the corrective solver alone
};

// [batch, n_select] or [batch]; the void pointers are float64 for float64 pools, else float32.
struct FwOutputs {
  int64_t *indices, *counts;  // null where the weights are dense
  int64_t *support_size, *num_iter;
  void *weights, *residual, *gap;
};

SolverPlan plan_frank_wolfe(const FwProblem& problem, const LaunchLimits& limits);

// The same with the way of making columns given. `warp`: one warp takes the steps if it can.
SolverPlan plan_columns(const FwProblem& problem, const LaunchLimits& limits, bool gram,
                        bool warp = true);

// Where one warp takes the steps: the most candidates of a pool, and threads of a block. They are
// fewer where other queries fill the device.
constexpr int kWarpCandidates = 256, kFwWarpThreads = 256;
inline int fw_warp_threads(int64_t batch, int64_t full_device) {
  return batch <= full_device ? kFwWarpThreads : 64;
}

// workspace: plan.workspace_bytes, a multiple of 16 bytes. An input or product that is not finite,
// and a size or candidate out of range, show in the outputs: see csrc/cuda/README.md.
cudaError_t launch_frank_wolfe(const FwProblem& problem, const SolverPlan& plan, void* workspace,
                               const FwOutputs& outputs, cudaStream_t stream);

// What a round begins with: the products of all rows with each query, and in later rounds with the
// row that it picked.
cudaError_t launch_columns(const PoolView& pool, const QueryView& query, int64_t batch,
                           const SolverPlan& plan, void* workspace, cudaStream_t stream);

// The same after the Gram matrices, by one warp.
cudaError_t launch_fw_warp(const FwProblem& problem, const SolverPlan& plan, void* workspace,
                           const FwOutputs& outputs, cudaStream_t stream);

}  // namespace hullft
