// Frank-Wolfe selection of a batch, with its integer counts: what is launched, and with which
// memory.
#pragma once

#include <driver_types.h>

#include <cstddef>

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

// Where a launch keeps what. csrc/cuda/README.md has the arithmetic behind the choices.
struct FwPlan {
  bool gram;          // whole Gram matrices before the solve, or columns as atoms are picked
  bool shared_state;  // O(K) state of a query in shared or in global memory
  bool warp;          // one warp takes the steps: small pools with their Gram and products
  int threads;
  int slots;               // atoms whose column is kept
  int64_t shared_limit;    // bytes of the largest state that lies in shared memory
  int64_t column_stride;   // bytes of the columns of one query, 0: one Gram matrix for all
  int64_t state_bytes;     // of one query
  int64_t columns_offset;  // into the workspace, after the states or products that lie there
  int64_t part;            // queries that are solved at a time
  int64_t workspace_bytes;
  int64_t sms;  // of the device
};

FwPlan plan_frank_wolfe(const FwProblem& problem, const LaunchLimits& limits);

// The same with the way of making columns given. `warp`: one warp takes the steps if it can.
FwPlan plan_columns(const FwProblem& problem, const LaunchLimits& limits, bool gram,
                    bool warp = true);

// workspace: plan.workspace_bytes, a multiple of 16 bytes. An input or product that is not finite,
// and a size or candidate out of range, show in the outputs: see csrc/cuda/README.md.
cudaError_t launch_frank_wolfe(const FwProblem& problem, const FwPlan& plan, void* workspace,
                               const FwOutputs& outputs, cudaStream_t stream);

}  // namespace hullft
