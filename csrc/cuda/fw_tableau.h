// Least squares of at most kTableauRows rows: one warp solves one query.
#pragma once

#include "fw_corrective.h"

namespace hullft {

constexpr int kTableauRows = 32;

// It wants Gram matrices.
inline bool fits_tableau(const FwProblem& problem) {
  return problem.dense && problem.pool.width <= kTableauRows;
}

// Products of one pool with all queries take little longer in float64, and keep what it keeps.
inline bool wants_wide_products(const FwProblem& problem) {
  constexpr int64_t kMostColumns = 4096;  // of which few blocks make the Gram matrix
  return fits_tableau(problem) && problem.pool.d <= kMostColumns &&
         n_pools(problem.pool, problem.batch) == 1;
}

// As launch_corrective, after the Gram matrices.
cudaError_t launch_tableau(const FwProblem& problem, Constraint constraint,
                           const CorrectivePlan& plan, void* workspace, const FwOutputs& outputs,
                           cudaStream_t stream);

}  // namespace hullft
