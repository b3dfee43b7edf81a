// Inner products of every candidate with one vector a query, spread over the whole device.
#pragma once

#include <driver_types.h>

#include "pool_view.h"

namespace hullft {

// Bytes of a vector and of its products, for every query.
inline int64_t correlation_bytes(const PoolView& pool, int64_t batch) {
  return batch * (pool.d + pool.width) * real_bytes_of(pool.storage);
}

// vectors [batch, d] = query - current, or query where current is null; float64 for float64 pools
// and float32 for all others.
cudaError_t launch_residual(const QueryView& query, const QueryView* current, int64_t batch,
                            int64_t d, Storage storage, void* vectors, cudaStream_t stream);

// products [batch, width] = <row k, vector>, both of the type above. Not set past a pool's size.
cudaError_t launch_correlate(const PoolView& pool, int64_t batch, const void* vectors,
                             void* products, cudaStream_t stream);

}  // namespace hullft
