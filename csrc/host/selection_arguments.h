// The tensors that the CPU and CUDA selection operators take.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <optional>

#include "checks.h"

namespace hullft {

struct PoolShape {
  int64_t batch, candidates, dim;
};

// pool [K, d] (shared by the batch) or [B, K, d]; query [B, d] or, with n_targets, [B, m, d].
inline PoolShape check_pool_query(const char* op, const char* pool_name, const Tensor& pool,
                                  const Tensor& query, int64_t query_dim = 2) {
  check_floating(op, pool_name, pool);
  if (pool.dim() != 2 && pool.dim() != 3)
    value_error(op, pool_name, " must have 2 or 3 dimensions, got ", pool.dim());
  check_dim(op, "query", query, query_dim);
  const int64_t last = pool.dim() - 1;
  const PoolShape shape{pool.dim() == 3 ? pool.size(0) : query.size(0), pool.size(last - 1),
                        pool.size(last)};
  if (shape.candidates < 1 || shape.dim < 1)
    value_error(op, pool_name, " is empty, got shape ", shape_text(pool.sizes()));
  check_range(op, "the number of candidates", shape.candidates, 1);
  check_storage(op, pool_name, pool);
  const ScalarType dtype = dtype_of(pool);
  if (query_dim == 2)
    check_tensor(op, "query", query, dtype, {shape.batch, shape.dim}, pool_name, pool);
  else
    check_tensor(op, "query", query, dtype, {shape.batch, query.size(1), shape.dim}, pool_name,
                 pool);
  return shape;
}

inline void check_sizes(const char* op, const char* name, const std::optional<Tensor>& sizes,
                        const char* pool_name, const Tensor& pool, int64_t batch) {
  if (sizes) check_tensor(op, name, *sizes, ScalarType::Long, {batch}, pool_name, pool);
}

// candidates int64 [B, K] of an embedding matrix.
inline void check_candidates_shape(const char* op, const Tensor& candidates,
                                   const Tensor& embeddings, int64_t batch) {
  check_dim(op, "candidates", candidates, 2);
  const int64_t width = candidates.size(1);
  check_tensor(op, "candidates", candidates, ScalarType::Long, {batch, width}, "embeddings",
               embeddings);
  check_range(op, "the number of candidates", width, 1);
}

// As many different rows as knn_select returns.
inline void check_enough_rows(const char* op, int64_t n_select, int64_t candidates) {
  if (n_select > candidates)
    value_error(op, "n_select is ", n_select, ", the pool has ", candidates, " rows");
}

// weights [B, m] for a support of that shape, float32 or float64.
inline void check_weights(const char* op, const Tensor& weights, const Tensor& support,
                          const PoolShape& shape) {
  const bool wide = dtype_of(weights) == ScalarType::Double;
  check_tensor(op, "weights", weights, wide ? ScalarType::Double : ScalarType::Float,
               {shape.batch, shape.candidates}, "support", support);
}

// current [B, d] beside query [B, d].
inline void check_current(const char* op, const Tensor& current, const Tensor& query) {
  check_tensor(op, "current", current, dtype_of(query), {query.size(0), query.size(1)}, "query",
               query);
}

inline bool has_dense_rows(const Tensor& t) {
  const int64_t last = t.dim() - 1;
  return t.size(last) <= 1 || t.stride(last) == 1;
}

// The same tensor when its last dimension is dense, a dense copy otherwise: rows are read as
// arrays.
inline Tensor with_dense_rows(const Tensor& t) {
  return has_dense_rows(t) ? t : torch::stable::contiguous(t);
}

}  // namespace hullft
