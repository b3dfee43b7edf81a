// Gram matrices G = X X^T of a batch of pools.
#pragma once

#include <driver_types.h>

#include "pool_view.h"

namespace hullft {

// Pools that differ: a batch may share one.
inline int64_t n_pools(const PoolView& pool, int64_t batch) {
  return pool.batch_stride == 0 && !pool.candidates ? 1 : batch;
}

// Whether whole Gram matrices cost less than `columns` columns a query as they are wanted.
bool gram_pays(const PoolView& pool, int64_t batch, int64_t columns);

// gram [n_pools, width, width], float64 for float64 pools and float32 for all others; symmetric bit
// for bit. Rows past a pool's size are left unset.
cudaError_t launch_gram(const PoolView& pool, int64_t n_pools, void* gram, cudaStream_t stream);

// The same for the pools of a batch; each query of a shared one reads the corner that it sees.
inline cudaError_t launch_grams(PoolView pool, int64_t batch, void* gram, cudaStream_t stream) {
  const int64_t pools = n_pools(pool, batch);
  if (pools == 1) pool.sizes = nullptr;
  return launch_gram(pool, pools, gram, stream);
}

}  // namespace hullft
