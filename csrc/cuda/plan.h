// What a launch may take of its device, and how it makes its Gram matrices. The arithmetic behind
// the choices: csrc/cuda/README.md.
#pragma once

#include <driver_types.h>

#include <algorithm>

#include "pool_view.h"

namespace hullft {

struct LaunchLimits {
  int64_t shared_bytes;  // of one block
  int64_t sms;
  int64_t workspace_bytes = int64_t(2) << 30;  // or what one query needs, if that is more

  // Blocks that keep every SM busy.
  int64_t full_device() const { return 2 * sms; }
};

// Limits of the current device.
cudaError_t device_limits(LaunchLimits* limits);

// Pools that differ: a batch may share one.
inline int64_t n_pools(const PoolView& pool, int64_t batch) {
  return pool.batch_stride == 0 && !pool.candidates ? 1 : batch;
}

struct GramPlan {
  int warp_tiles;  // of a warp of gram_blocks.cu, or 0: each tile has a block of its own
  double cycles;   // predicted
};

// queries: of each pool.
GramPlan plan_gram(const PoolView& pool, int64_t pools, int queries, int64_t sms);

// Whether whole Gram matrices take less time than `columns` columns a query as they are wanted.
bool gram_pays(const PoolView& pool, int64_t batch, int64_t columns, int64_t sms);

// The plan with whole Gram matrices if they take less time, at most kMoreForGrams bytes more, and
// leave parts that fill the device; else the one with columns. plan_of(limits, gram) makes either.
constexpr int64_t kMoreForGrams = 512 << 20;
template <typename PlanOf>
auto choose_columns(const PoolView& pool, int64_t batch, int64_t columns,
                    const LaunchLimits& limits, const PlanOf& plan_of) {
  const auto with_columns = plan_of(limits, false);
  LaunchLimits for_grams = limits;
  for_grams.workspace_bytes =
      std::min(limits.workspace_bytes, with_columns.workspace_bytes + kMoreForGrams);
  // In double: 64 bits do not hold the bytes of every Gram matrix.
  if (4.0 * double(pool.width) * double(pool.width) > double(for_grams.workspace_bytes))
    return with_columns;
  const auto with_grams = plan_of(for_grams, true);
  const bool fits = with_grams.workspace_bytes <= for_grams.workspace_bytes &&
                    with_grams.part >= std::min(batch, limits.full_device());
  return fits && gram_pays(pool, batch, columns, limits.sms) ? with_grams : with_columns;
}

}  // namespace hullft
