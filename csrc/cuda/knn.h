// The nearest rows by inner product, with the residual and gap of their equal weights.
#pragma once

#include <driver_types.h>

#include "frank_wolfe.h"

namespace hullft {

struct KnnProblem {
  PoolView pool;
  QueryView query;
  int64_t batch;
  int n_select;
};

int64_t knn_workspace_bytes(const KnnProblem& problem);

// A pool smaller than n_select counts as an error of its query, as in launch_frank_wolfe.
cudaError_t launch_knn(const KnnProblem& problem, void* workspace, const FwOutputs& outputs,
                       cudaStream_t stream);

}  // namespace hullft
