// A batch whose workspace would be too large is solved in parts, one after the other on the stream.
#pragma once

#include <algorithm>

#include "frank_wolfe.h"

namespace hullft {

// As even as can be, of one query at least. `all_bytes`: of what all queries share.
inline int64_t queries_of_part(int64_t batch, int64_t query_bytes, int64_t all_bytes,
                               int64_t limit) {
  if (batch == 0 || query_bytes == 0) return batch;
  const int64_t fit = std::max<int64_t>((limit - all_bytes) / query_bytes, 1);
  const int64_t parts = (batch + fit - 1) / fit;
  return (batch + parts - 1) / parts;
}

// Each of these is the rest of a batch, from query `first` on.
inline PoolView rest_of(PoolView pool, int64_t first) {
  pool.base =
      static_cast<const char*>(pool.base) + first * pool.batch_stride * bytes_of(pool.storage);
  if (pool.candidates) pool.candidates += first * pool.candidates_stride;
  if (pool.sizes) pool.sizes += first;
  return pool;
}

inline QueryView rest_of(const QueryView& query, int64_t first, Storage storage) {
  return {static_cast<const char*>(query.base) + first * query.stride * bytes_of(storage),
          query.stride};
}

// `queries` of a FwProblem's or a SiftProblem's batch from query `first` on, or what is left of it.
template <typename Problem>
Problem part_of(const Problem& problem, int64_t first, int64_t queries) {
  Problem part = problem;
  part.pool = rest_of(problem.pool, first);
  part.query = rest_of(problem.query, first, problem.pool.storage);
  part.batch = std::min(queries, problem.batch - first);
  return part;
}

inline FwOutputs rest_of(const FwOutputs& out, int64_t first, int n_select, int64_t real_bytes) {
  const auto after = [&](void* p, int64_t values) {
    return static_cast<char*>(p) + values * real_bytes;
  };
  const int64_t rows = first * n_select;
  const bool dense = !out.indices;
  return {dense ? nullptr : out.indices + rows,
          dense ? nullptr : out.counts + rows,
          out.support_size + first,
          out.num_iter + first,
          after(out.weights, rows),
          after(out.residual, first),
          after(out.gap, first)};
}

}  // namespace hullft
