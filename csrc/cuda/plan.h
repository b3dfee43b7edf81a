// What a launch may take of its device, and how it makes its Gram matrices. The arithmetic behind
// the choices: csrc/cuda/README.md.
#pragma once

#include <driver_types.h>

#include <algorithm>

#include "../core/platform.h"
#include "gram_grid.h"
#include "pool_view.h"

namespace hullft {

struct LaunchLimits {
  int64_t shared_bytes;  // of one block
  int64_t sms;
  int64_t workspace_bytes = int64_t(2) << 30;  // or what one query needs, if that is more
  int64_t rounds = -1;                         // of columns by the device, -1: if they pay

  // Blocks that keep every SM busy.
  int64_t full_device() const { return 2 * sms; }
};

// Where a solver that gives a query a block keeps what. csrc/cuda/README.md has the arithmetic
// behind the choices.
struct SolverPlan {
  bool gram;           // whole Gram matrices before the solve, or columns as rows are picked
  bool shared_state;   // the state of a query in shared or in global memory
  bool warp;           // one warp takes the steps: few rows with their Gram matrix and products
  bool wide;           // state and products are float64, whatever the rows are
  bool wide_products;  // products round as float64 does, not as float32
  int threads;
  int slots;              // rows of the support at most
  int64_t shared_limit;   // bytes of the largest state that lies in shared memory
  int64_t column_stride;  // bytes of the columns of one query, 0: one Gram matrix for all
  int64_t state_bytes;    // of one query
  // Into the workspace, which begins with the products of the rows with their queries.
  int64_t states_offset, columns_offset;
  int64_t partial_offset;  // the sums of the shares
  int64_t behind_offset;   // what else a solver keeps of its queries
  int64_t part;            // queries that are solved at a time
  int64_t workspace_bytes;
  int64_t sms;    // of the device
  int rounds;     // for each, the device computes a column of every query; 0: blocks compute them
  int round;      // that is launched
  Shares shares;  // of long rows, over which the device sums up products and squares
};

// At the end of a state, in plans with rounds, for what a round leaves to the next.
constexpr int64_t kPauseBytes = 256;

inline int64_t aligned_bytes(int64_t bytes) { return (bytes + 15) / 16 * 16; }

template <typename T>
HULLFT_HD T* in_workspace(void* workspace, int64_t offset) {
  return reinterpret_cast<T*>(static_cast<unsigned char*>(workspace) + offset);
}

// Limits of the current device.
cudaError_t device_limits(LaunchLimits* limits);

// Pools that differ: a batch may share one.
inline int64_t n_pools(const PoolView& pool, int64_t batch) {
  return pool.batch_stride == 0 && !pool.candidates ? 1 : batch;
}

// Whether products and their sums are float64 throughout. Long float32 rows have products with
// float32's rounding.
inline bool has_wide_products(const PoolView& pool, bool wide) {
  return pool.storage == Storage::kFloat64 || (wide && pool.d < kLongRow);
}

struct GramPlan {
  int warp_tiles;  // of a warp of gram_blocks.cu, or 0: each tile has a block of its own
  double cycles;   // predicted
};

// queries: of each pool.
GramPlan plan_gram(const PoolView& pool, bool wide, int64_t pools, int queries, int64_t sms);

// Whether whole Gram matrices take less time than `columns` columns a query as they are wanted, by
// a plan for that.
bool gram_pays(const PoolView& pool, int64_t batch, int64_t columns, const SolverPlan& plan);

// The plan with whole Gram matrices if they take less time, at most kMoreForGrams bytes more, and
// leave parts that fill the device; else the one with columns. plan_of(problem, limits, gram) makes
// either.
constexpr int64_t kMoreForGrams = 512 << 20;
template <typename Problem, typename PlanOf>
auto choose_columns(const Problem& problem, int64_t columns, const LaunchLimits& limits,
                    const PlanOf& plan_of) {
  const PoolView& pool = problem.pool;
  const auto with_columns = plan_of(problem, limits, false);
  LaunchLimits for_grams = limits;
  for_grams.workspace_bytes =
      std::min(limits.workspace_bytes, with_columns.workspace_bytes + kMoreForGrams);
  // In double: 64 bits do not hold the bytes of every Gram matrix.
  if (4.0 * double(pool.width) * double(pool.width) > double(for_grams.workspace_bytes))
    return with_columns;
  const auto with_grams = plan_of(problem, for_grams, true);
  const bool fits = with_grams.workspace_bytes <= for_grams.workspace_bytes &&
                    with_grams.part >= std::min(problem.batch, limits.full_device());
  return fits && gram_pays(pool, problem.batch, columns, with_columns) ? with_grams : with_columns;
}

}  // namespace hullft
