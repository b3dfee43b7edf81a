// Gram matrices G = X X^T of a batch of pools.
#pragma once

#include <driver_types.h>

#include "pool_view.h"

namespace hullft {

// gram [n_pools, width, width], float64 for float64 pools and float32 for all others; symmetric bit
// for bit. Rows past a pool's size are left unset.
cudaError_t launch_gram(const PoolView& pool, int64_t n_pools, void* gram, cudaStream_t stream);

}  // namespace hullft
