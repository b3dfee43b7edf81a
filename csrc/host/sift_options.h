// The query and the options of sift_select.
#pragma once

#include <cmath>
#include <cstdint>

#include "selection_arguments.h"

namespace hullft {

struct SiftOptions {
  int64_t n_select, n_targets;
  double noise;
};

// As `check_pool_query`, with query [B, d] or [B, n_targets, d].
inline PoolShape check_sift_query(const char* op, const char* pool_name, const Tensor& pool,
                                  const Tensor& query) {
  if (query.dim() != 2 && query.dim() != 3)
    value_error(op, "query must have 2 or 3 dimensions, got ", query.dim());
  return check_pool_query(op, pool_name, pool, query, query.dim());
}

// query as `check_sift_query` takes it.
inline SiftOptions check_sift_options(const char* op, const Tensor& query, int64_t n_select,
                                      double noise) {
  check_range(op, "n_select", n_select, 1);
  if (!(noise > 0) || std::isinf(noise) || std::isinf(1 / noise))
    value_error(op, "noise must be finite, > 0 and have a reciprocal, got ", noise);
  const int64_t n_targets = query.dim() == 3 ? query.size(1) : 1;
  if (n_targets < 1) value_error(op, "query has no targets");
  return {n_select, n_targets, noise};
}

}  // namespace hullft
