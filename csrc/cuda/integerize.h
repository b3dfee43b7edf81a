// Weights to counts on their own.
#pragma once

#include <driver_types.h>

#include "pool_view.h"

namespace hullft {

struct IntegerizeProblem {
  PoolView support;
  QueryView query;
  const void* weights;  // [batch, width]
  bool wide_weights;    // float64 rather than float32
  int64_t batch;
  int n_select, swap_passes;
  int64_t sms;  // of the device
};

int64_t integerize_workspace_bytes(const IntegerizeProblem& problem);

// counts [batch, width], 0 past a support's size, all -1 for a query whose input is not finite or
// whose size is out of range.
cudaError_t launch_integerize(const IntegerizeProblem& problem, void* workspace, int64_t* counts,
                              cudaStream_t stream);

}  // namespace hullft
