// Gram matrices G = X X^T of a batch of pools, and their products with the queries.
#pragma once

#include <driver_types.h>

#include "gram_grid.h"
#include "plan.h"

namespace hullft {

struct GramProblem {
  PoolView pool;  // each of `pools` has candidates and a size of its own
  int64_t pools;
  QueryView query;     // a pool's queries follow one another
  int queries;         // of a pool
  void* gram;          // [pools, width, width]
  void* products;      // [pools, queries, width], of the rows with the queries of their pool
  Shares shares;       // of long rows, whose products are summed up here:
  void* partial;       // [pools, shares, width + queries, width], float64
  bool wide;           // products as float64, whatever the rows are
  bool wide_products;  // and with its rounding
};

// The matrices of a batch, without queries. Each query of a shared pool reads the corner that it
// sees.
inline GramProblem grams_of(PoolView pool, int64_t batch, void* gram) {
  const int64_t pools = n_pools(pool, batch);
  if (pools == 1) pool.sizes = nullptr;
  const bool wide = pool.storage == Storage::kFloat64;
  return {pool, pools, {nullptr, 0}, 0, gram, nullptr, {pool.d, 0}, nullptr, wide, wide};
}

// The matrices in the workspace of a plan.
inline GramProblem grams_of(const SolverPlan& plan, const PoolView& pool, int64_t batch,
                            void* workspace) {
  GramProblem grams = grams_of(pool, batch, in_workspace<void>(workspace, plan.columns_offset));
  grams.shares = plan.shares, grams.partial = in_workspace<void>(workspace, plan.partial_offset);
  grams.wide = plan.wide, grams.wide_products = plan.wide_products;
  return grams;
}

inline void add_queries(GramProblem& grams, const QueryView& query, int64_t batch, void* products) {
  grams.query = query, grams.products = products, grams.queries = int(batch / grams.pools);
}

// float64 for float64 pools and where that is asked for, else float32. Gram matrices are symmetric
// bit for bit. Rows past a pool's size are left unset. Aligned vectors: pool.vectors speaks for the
// queries too.
cudaError_t launch_gram(const GramProblem& problem, int64_t sms, cudaStream_t stream);

// The launch of tiles by blocks, see gram_blocks.cu. warp_tiles: of a warp. Of long rows, the
// products of each share.
cudaError_t launch_gram_blocks(const GramProblem& problem, int warp_tiles, cudaStream_t stream);
constexpr int kLongWarpTiles = 2;

// Adds up the products of the shares, see long_rows.cu.
cudaError_t launch_gram_sum(const GramProblem& problem, cudaStream_t stream);

// Of supports: rows of the pool as the query sees it, and their weights.
struct DistanceProblem {
  PoolView pool;
  QueryView query;
  int64_t batch;
  Shares shares;
  double* partial;                 // [batch, shares]
  void* out;                       // [batch], of the type of the outputs; float64 without supports
  const int* support = nullptr;    // [batch, slots], or null
  const void* weights = nullptr;   // [batch, slots], of the type of the outputs
  const int64_t* sizes = nullptr;  // of the supports
  const double* asked = nullptr;   // below 0: the query has no residual yet
  int slots = 0;
};

// ||q - X^T w||, and without supports the square of q.
cudaError_t launch_distances(const DistanceProblem& problem, cudaStream_t stream);

}  // namespace hullft
