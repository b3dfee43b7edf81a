// The corrective solver for the operators that end in it.
#pragma once

#include <algorithm>

#include "../cuda/fw_corrective.h"
#include "context.h"
#include "views.h"

namespace hullft {

// Bytes of one query at most, as a batch is solved in parts: its state, the column of every row of
// the support, and their factor.
inline double workspace_of_query(double width, double max_support) {
  constexpr double kStateBytes = 128, kMoreRows = 64;
  const double rows = std::min(width, max_support + kMoreRows);
  return kStateBytes * (width + rows) + 8 * rows * (width + rows);
}

inline void solve_corrective(const char* op, const Tensor& pool, const FwProblem& problem,
                             Constraint constraint, const FwOutputs& outputs,
                             const CudaContext& context) {
  const SolverPlan plan = plan_corrective(problem, context.limits());
  const Tensor workspace = context.workspace(pool, plan.workspace_bytes);
  check_cuda(op, launch_corrective(problem, constraint, plan, workspace.mutable_data_ptr(), outputs,
                                   context.stream()));
}

}  // namespace hullft
