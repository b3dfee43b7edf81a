// Fully corrective Frank-Wolfe of a batch: fw_select's variant "corrective", and with dense weights
// simplex_lstsq and nnls. What is launched, and with which memory.
#pragma once

#include <driver_types.h>

#include "../core/corrective.h"
#include "frank_wolfe.h"
#include "gram_grid.h"

namespace hullft {

// Where a launch keeps what.
struct CorrectivePlan {
  bool gram;          // whole Gram matrices before the solve, or columns as rows join
  bool shared_state;  // the state of a query in shared or in global memory
  bool tableau;       // one warp solves a query of few rows, see fw_tableau.cu
  bool wide;          // its products are float64 where the rows are not
  int threads;
  int capacity;            // rows of the support at most
  int64_t shared_limit;    // bytes of the largest state that lies in shared memory
  int64_t state_bytes;     // of one query
  int64_t column_stride;   // bytes of the columns of one query, 0: one Gram matrix for all
  int64_t states_offset;   // into the workspace, after the products of the rows with their query
  int64_t columns_offset;  // after the states that lie there
  Shares shares;           // of long rows, over which the device sums up products and squares
  int64_t partial_offset;  // after the columns
  int64_t long_offset;  // after the sums of the shares: what a solve takes and leaves of its rows
  int64_t part;         // queries that are solved at a time
  int64_t workspace_bytes;
  int64_t sms;  // of the device
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

}  // namespace hullft
