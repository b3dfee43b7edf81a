// SIFT of a batch: its launch and its memory.
#pragma once

#include <driver_types.h>

#include "frank_wolfe.h"

namespace hullft {

// The targets of a query follow one another; query.stride leads to the targets of the next query.
struct SiftProblem {
  PoolView pool;
  QueryView query;
  int64_t batch;
  int n_select, n_targets;
  double noise;
};

// picks and variance [batch, n_select]; variance is float64 for float64 pools, else float32.
struct SiftOutputs {
  FwOutputs selection;
  int64_t* picks;
  void* variance;
};

// Columns are Gram matrices. Behind them: columns given earlier picks, [part, n_select, width].
SolverPlan plan_sift(const SiftProblem& problem, const LaunchLimits& limits);

// The same with the way of making Gram columns given.
SolverPlan plan_sift_columns(const SiftProblem& problem, const LaunchLimits& limits, bool gram);

// workspace: plan.workspace_bytes, a multiple of 16 bytes. Errors show as in launch_frank_wolfe,
// and as picks of -1 with a variance of NaN.
cudaError_t launch_sift(const SiftProblem& problem, const SolverPlan& plan, void* workspace,
                        const SiftOutputs& outputs, cudaStream_t stream);

}  // namespace hullft
