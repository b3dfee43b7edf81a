// What the CPU and CUDA selection operators share: options, checks that need no data, outputs.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <array>
#include <cmath>
#include <tuple>

#include "checks.h"
#include "empty.h"

namespace hullft {

struct FwOptions {
  int64_t n_select, max_iter;
  double tol, gap_tol;
  Variant variant;
  int64_t swap_passes;
};

inline FwOptions check_fw_options(const char* op, int64_t n_select, int64_t max_iter, double tol,
                                  double gap_tol, const std::string& variant, int64_t swap_passes) {
  check_range(op, "n_select", n_select, 1);
  check_range(op, "max_iter", max_iter, 0);
  check_range(op, "swap_passes", swap_passes, 0);
  check_tolerance(op, "tol", tol);
  check_tolerance(op, "gap_tol", gap_tol);
  return {n_select, max_iter, tol, gap_tol, parse_variant(op, variant), swap_passes};
}

// candidates int64 [B, K] of an embedding matrix.
inline void check_candidates_shape(const char* op, const Tensor& candidates,
                                   const Tensor& embeddings, int64_t batch) {
  check_int64(op, "candidates", candidates, "embeddings", embeddings);
  check_dim(op, "candidates", candidates, 2);
  if (candidates.size(0) != batch)
    value_error(op, "candidates has batch ", candidates.size(0), ", query has batch ", batch);
  if (candidates.size(1) < 1) value_error(op, "candidates is empty");
  check_range(op, "the number of candidates", candidates.size(1), 1);
}

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

// query as `check_sift_query` wants it.
inline SiftOptions check_sift_options(const char* op, const Tensor& query, int64_t n_select,
                                      double noise) {
  check_range(op, "n_select", n_select, 1);
  if (!(noise > 0) || !std::isfinite(noise))
    value_error(op, "noise must be finite and > 0, got ", noise);
  if (!std::isfinite(1 / noise)) value_error(op, "noise must have a reciprocal, got ", noise);
  const int64_t n_targets = query.dim() == 3 ? query.size(1) : 1;
  if (n_targets < 1) value_error(op, "query has no targets");
  return {n_select, n_targets, noise};
}

// As many different rows as knn_select returns.
inline void check_enough_rows(const char* op, int64_t n_select, const PoolShape& shape) {
  if (n_select > shape.candidates)
    value_error(op, "n_select is ", n_select, ", the pool has ", shape.candidates, " rows");
}

// weights [B, m] for a support of that shape.
inline void check_weights(const char* op, const Tensor& weights, const Tensor& support,
                          const PoolShape& shape) {
  check_dim(op, "weights", weights, 2);
  if (weights.scalar_type() != ScalarType::Double && weights.scalar_type() != ScalarType::Float)
    value_error(op, "weights must be float32 or float64, got ", dtype_name(weights.scalar_type()));
  check_same_device(op, "weights", weights, "support", support);
  if (weights.size(0) != shape.batch || weights.size(1) != shape.candidates)
    value_error(op, "weights has shape [", weights.size(0), ", ", weights.size(1), "], wanted [",
                shape.batch, ", ", shape.candidates, "]");
  check_storage(op, "weights", weights);
}

// current [B, d] beside query [B, d].
inline void check_current(const char* op, const Tensor& current, const Tensor& query) {
  check_like(op, "current", current, "query", query);
  check_dim(op, "current", current, 2);
  if (current.size(0) != query.size(0) || current.size(1) != query.size(1))
    value_error(op, "current has shape [", current.size(0), ", ", current.size(1), "], wanted [",
                query.size(0), ", ", query.size(1), "]");
  check_storage(op, "current", current);
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

// State and outputs are float64 for float64 pools, float32 for all others.
inline ScalarType real_type(const Tensor& pool) {
  return pool.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The tensors that every selection operator returns.
struct SelectionTensors {
  using Tuple = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

  SelectionTensors(const Tensor& pool, int64_t batch, int64_t n_select) {
    const ScalarType real = real_type(pool);
    const std::array<int64_t, 2> rows{batch, n_select};
    const std::array<int64_t, 1> one{batch};
    indices = empty_beside(pool, rows, ScalarType::Long);
    weights = empty_beside(pool, rows, real);
    counts = empty_beside(pool, rows, ScalarType::Long);
    support_size = empty_beside(pool, one, ScalarType::Long);
    residual = empty_beside(pool, one, real);
    gap = empty_beside(pool, one, real);
    num_iter = empty_beside(pool, one, ScalarType::Long);
  }

  Tuple tuple() const { return {indices, weights, counts, support_size, residual, gap, num_iter}; }

  Tensor indices, weights, counts, support_size, residual, gap, num_iter;
};

// What sift_select returns besides a selection: its picks in their order.
struct PickTensors {
  using Tuple = decltype(std::tuple_cat(SelectionTensors::Tuple(), std::tuple<Tensor, Tensor>()));

  PickTensors(const Tensor& pool, int64_t batch, int64_t n_select) {
    const std::array<int64_t, 2> rows{batch, n_select};
    picks = empty_beside(pool, rows, ScalarType::Long);
    variance = empty_beside(pool, rows, real_type(pool));
  }

  Tuple after(const SelectionTensors::Tuple& selection) const {
    return std::tuple_cat(selection, std::tuple(picks, variance));
  }

  Tensor picks, variance;
};

// The tensors that fw_lmo returns.
struct LmoTensors {
  using Tuple = std::tuple<Tensor, Tensor, Tensor, Tensor>;

  LmoTensors(const Tensor& pool, int64_t batch) {
    const std::array<int64_t, 1> one{batch};
    vertex = empty_beside(pool, one, ScalarType::Long);
    correlation = empty_beside(pool, one, real_type(pool));
    gamma = empty_beside(pool, one, real_type(pool));
    gap = empty_beside(pool, one, real_type(pool));
  }

  Tuple tuple() const { return {vertex, correlation, gamma, gap}; }

  Tensor vertex, correlation, gamma, gap;
};

}  // namespace hullft
