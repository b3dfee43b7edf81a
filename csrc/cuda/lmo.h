// The linear-minimisation step of Frank-Wolfe on its own.
#pragma once

#include <driver_types.h>

#include "pool_view.h"

namespace hullft {

struct LmoProblem {
  PoolView pool;
  QueryView query, current;
  int64_t batch;
};

// [batch] each; the void pointers are float64 for float64 pools, else float32.
struct LmoOutputs {
  int64_t* index;
  void *correlation, *gamma, *gap;
};

// workspace: correlation_bytes.
cudaError_t launch_lmo(const LmoProblem& problem, void* workspace, const LmoOutputs& outputs,
                       cudaStream_t stream);

}  // namespace hullft
