// Fully corrective Frank-Wolfe of a batch: fw_select's variant "corrective", and with dense weights
// simplex_lstsq and nnls. Its launch and its memory.
#pragma once

#include <driver_types.h>

#include "../core/corrective.h"
#include "frank_wolfe.h"

namespace hullft {

// float64 where the weights are dense, whatever the rows are. Behind the columns of a plan lies
// what solves take and leave of long rows. `warp` is the solver of fw_tableau.cu.
SolverPlan plan_corrective(const FwProblem& problem, const LaunchLimits& limits);

// The same with the way of making columns given.
SolverPlan plan_corrective_columns(const FwProblem& problem, const LaunchLimits& limits, bool gram);

// Dense weights [batch, width] where outputs.indices and outputs.counts are null: n_select and
// max_support are the width then. workspace: plan.workspace_bytes, a multiple of 16 bytes. Errors
// show as in launch_frank_wolfe.
cudaError_t launch_corrective(const FwProblem& problem, Constraint constraint,
                              const SolverPlan& plan, void* workspace, const FwOutputs& outputs,
                              cudaStream_t stream);

// The same after the Gram matrices, of few rows: a lane has one.
constexpr int kTableauRows = 32;
cudaError_t launch_tableau(const FwProblem& problem, Constraint constraint, const SolverPlan& plan,
                           void* workspace, const FwOutputs& outputs, cudaStream_t stream);

}  // namespace hullft
