// The adjoint of simplex_lstsq and nnls, from which their gradients are made: for each query, the
// solution of its support's system.
#pragma once

#include <driver_types.h>

#include "plan.h"

namespace hullft {

struct AdjointProblem {
  PoolView pool;
  const void* weights;  // [batch, width], float64 for float64 pools, else float32
  const double* gradient;
  double* out;  // both [batch, width]
  int64_t batch;
  bool on_simplex;
};

// Offsets into the workspace, in bytes. What a query has of its own lies first.
struct AdjointPlan {
  bool gathers;       // each query has a Gram matrix of its support alone
  int most;           // rows of a support
  Shares shares;      // of long rows
  int64_t part, sms;  // queries that are solved at a time
  int64_t heads, systems, grams, partial, workspace_bytes;
};

AdjointPlan plan_adjoint(const AdjointProblem& problem, const LaunchLimits& limits);

// A support of more than max(4096, d + 2) rows, which simplex_lstsq and nnls never return, is NaN.
cudaError_t launch_adjoint(const AdjointProblem& problem, const AdjointPlan& plan, void* workspace,
                           cudaStream_t stream);

}  // namespace hullft
