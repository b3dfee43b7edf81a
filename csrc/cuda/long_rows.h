// What is split over the device where rows are long, besides Gram matrices: the squares of queries
// and of residuals. Every sum over d is float64.
#pragma once

#include <driver_types.h>

#include "gram_grid.h"
#include "pool_view.h"

namespace hullft {

// The support of every query of a batch: rows of the pool as the query sees it, and their weights.
struct SupportView {
  const int* rows;      // [batch, capacity], or null
  const void* weights;  // [batch, capacity], of the type of the outputs
  const int64_t* sizes;
  const int64_t* num_iter;  // below 0: the query has failed, and keeps its output
  int capacity;
};

struct DistanceProblem {
  PoolView pool;
  QueryView query;
  int64_t batch;
  SupportView support;
  Shares shares;
  double* partial;  // [batch, shares]
  void* out;        // [batch], of the type of the outputs
};

// ||q - X^T w||, and without supports the square of q.
cudaError_t launch_distances(const DistanceProblem& problem, cudaStream_t stream);

}  // namespace hullft
