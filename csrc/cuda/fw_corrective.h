// Fully corrective Frank-Wolfe of a batch: fw_select's variant "corrective", and with dense weights
// simplex_lstsq and nnls. What is launched, and with which memory.
#pragma once

#include <driver_types.h>

#include "../core/corrective.h"
#include "frank_wolfe.h"
#include "gram_grid.h"

namespace hullft {

// The workspace begins with the products of the rows with their query, if there are Gram matrices.
// `warp` is the solver of fw_tableau.cu.
struct CorrectivePlan : SolverPlan {
  bool wide;               // products are float64 where the rows are not
  Shares shares;           // of long rows, over which the device sums up products and squares
  int64_t states_offset;   // after the products
  int64_t partial_offset;  // after the columns: the sums of the shares
  int64_t long_offset;     // after them: what a solve takes and leaves of its long rows
  int64_t residuals_size;  // or numbers for q - X^T w of a query whose weights are refined, else 0
};

CorrectivePlan plan_corrective(const FwProblem& problem, const LaunchLimits& limits);

// The same with the way of making columns given.
CorrectivePlan plan_corrective_columns(const FwProblem& problem, const LaunchLimits& limits,
                                       bool gram);

// Dense weights [batch, width] where outputs.indices and outputs.counts are null: n_select and
// max_support are the width then. workspace: plan.workspace_bytes, a multiple of 16 bytes. Errors
// show as in launch_frank_wolfe.
cudaError_t launch_corrective(const FwProblem& problem, Constraint constraint,
                              const CorrectivePlan& plan, void* workspace, const FwOutputs& outputs,
                              cudaStream_t stream);

// The same after the Gram matrices, of few rows: one warp solves a query.
constexpr int kTableauRows = 32;
cudaError_t launch_tableau(const FwProblem& problem, Constraint constraint,
                           const CorrectivePlan& plan, void* workspace, const FwOutputs& outputs,
                           cudaStream_t stream);

}  // namespace hullft
