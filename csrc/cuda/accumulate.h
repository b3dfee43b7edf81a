// cache <- beta * cache + alpha * grad over many tensors.
#pragma once

#include <driver_types.h>

#include "pool_view.h"

namespace hullft {

struct AccumulateEntry {
  void* cache;
  const void* grad;
  int64_t numel;
};

// entries of one dtype for caches, another for gradients. With beta = 0 the cache is not read.
cudaError_t launch_accumulate(const AccumulateEntry* entries, int64_t n, Storage cache,
                              Storage grad, double alpha, double beta, cudaStream_t stream);

}  // namespace hullft
