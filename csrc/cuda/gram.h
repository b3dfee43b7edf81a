// Gram matrices G = X X^T of a batch of pools.
#pragma once

#include <driver_types.h>

#include <algorithm>

#include "frank_wolfe.h"

namespace hullft {

// Pools that differ: a batch may share one.
inline int64_t n_pools(const PoolView& pool, int64_t batch) {
  return pool.batch_stride == 0 && !pool.candidates ? 1 : batch;
}

// Whether whole Gram matrices take less time than `columns` columns a query as they are wanted.
bool gram_pays(const PoolView& pool, int64_t batch, int64_t columns);

// Of plan(limits, gram) the one with whole Gram matrices, where they take less time, at most
// kMoreForGrams bytes more, and leave parts that fill the device; else the one with columns.
constexpr int64_t kMoreForGrams = 512 << 20;
constexpr int64_t kFullDevice = 264;  // blocks on an H100
template <typename PlanOf>
auto choose_columns(const PoolView& pool, int64_t batch, int64_t columns,
                    const LaunchLimits& limits, const PlanOf& plan_of) {
  const auto with_columns = plan_of(limits, false);
  const int64_t limit =
      std::min(limits.workspace_bytes, with_columns.workspace_bytes + kMoreForGrams);
  // In double: 64 bits do not hold the bytes of every Gram matrix.
  if (4.0 * double(pool.width) * double(pool.width) > double(limit)) return with_columns;
  const auto with_grams = plan_of({limits.shared_bytes, limit}, true);
  const bool fits =
      with_grams.workspace_bytes <= limit && with_grams.part >= std::min(batch, kFullDevice);
  return fits && gram_pays(pool, batch, columns) ? with_grams : with_columns;
}

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
