// SIFT of a batch: what is launched, and with which memory.
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

// Where a launch keeps what.
struct SiftPlan {
  bool gram;          // whole Gram matrices before the picks, or a column for each pick
  bool shared_state;  // O(K) state of a query in shared or in global memory
  int threads;
  int64_t shared_limit;    // bytes of the largest state that lies in shared memory
  int64_t state_bytes;     // of one query
  int64_t gram_stride;     // bytes from the Gram matrix of a query to the next, 0: one for all
  int64_t gram_offset;     // into the workspace, after the states that lie there
  int64_t columns_offset;  // the conditional columns, [part, n_select, width]
  int64_t part;            // queries that are solved at a time
  int64_t workspace_bytes;
  int64_t sms;  // of the device
};

SiftPlan plan_sift(const SiftProblem& problem, const LaunchLimits& limits);

// The same with the way of making Gram columns given.
SiftPlan plan_sift_columns(const SiftProblem& problem, const LaunchLimits& limits, bool gram);

// workspace: plan.workspace_bytes, a multiple of 16 bytes. Errors show as in launch_frank_wolfe,
// and as picks of -1 with a variance of NaN.
cudaError_t launch_sift(const SiftProblem& problem, const SiftPlan& plan, void* workspace,
                        const SiftOutputs& outputs, cudaStream_t stream);

}  // namespace hullft
