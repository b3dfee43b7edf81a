// What the CPU and CUDA operators of a pool and a query take.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <optional>

#include "checks.h"

namespace hullft {

// The tensors of one call, checked, and what errors call them.
struct SelectionArguments {
  const char *op, *pool_name, *sizes_name;  // of the public function
  Tensor pool;   // [K, d] (shared by the batch), [B, K, d] or, with candidates, [M, d]
  Tensor query;  // [B, d] or, for sift_select, [B, m, d]
  std::optional<Tensor> sizes;                      // int64 [B]
  int64_t batch, width, dim;                        // width: candidates of a query at most
  std::optional<Tensor> candidates = std::nullopt;  // int64 [B, K]: rows of pool
  const char* query_name = "query";

  int64_t n_targets() const { return query.dim() == 3 ? query.size(1) : 1; }
};

inline SelectionArguments check_arguments(const char* op, const char* pool_name, const Tensor& pool,
                                          const Tensor& query, const char* sizes_name,
                                          const std::optional<Tensor>& sizes,
                                          bool several_targets = false) {
  check_floating(op, pool_name, pool);
  if (pool.dim() != 2 && pool.dim() != 3)
    value_error(op, pool_name, " must have 2 or 3 dimensions, got ", pool.dim());
  if (query.dim() != 2 && !(several_targets && query.dim() == 3))
    value_error(op, "query must have ", several_targets ? "2 or 3" : "2", " dimensions, got ",
                query.dim());
  const int64_t batch = pool.dim() == 3 ? pool.size(0) : query.size(0);
  const int64_t width = pool.size(pool.dim() - 2), dim = pool.size(pool.dim() - 1);
  if (width < 1 || dim < 1)
    value_error(op, pool_name, " is empty, got shape ", shape_text(pool.sizes()));
  check_range(op, "the number of candidates", width, 1);
  check_storage(op, pool_name, pool);
  const ScalarType dtype = dtype_of(pool);
  if (query.dim() == 2)
    check_tensor(op, "query", query, dtype, {batch, dim}, pool_name, pool);
  else
    check_tensor(op, "query", query, dtype, {batch, query.size(1), dim}, pool_name, pool);
  if (query.dim() == 3 && query.size(1) == 0) value_error(op, "query has no targets");
  if (sizes) check_tensor(op, sizes_name, *sizes, ScalarType::Long, {batch}, pool_name, pool);
  return {op, pool_name, sizes_name, pool, query, sizes, batch, width, dim};
}

inline SelectionArguments check_selection(const char* op, const Tensor& pool, const Tensor& query,
                                          const std::optional<Tensor>& sizes,
                                          const std::optional<Tensor>& candidates,
                                          bool several_targets = false) {
  if (candidates) check_dim(op, "pool", pool, 2);
  SelectionArguments arguments =
      check_arguments(op, "pool", pool, query, "pool_sizes", sizes, several_targets);
  if (!candidates) return arguments;
  check_dim(op, "candidates", *candidates, 2);
  arguments.width = candidates->size(1);
  check_tensor(op, "candidates", *candidates, ScalarType::Long, {arguments.batch, arguments.width},
               "pool", pool);
  check_range(op, "the number of candidates", arguments.width, 1);
  arguments.candidates = candidates;
  return arguments;
}

// As many different rows as knn_select returns.
inline void check_enough_rows(const SelectionArguments& arguments, int64_t n_select) {
  if (n_select > arguments.width)
    value_error(arguments.op, "n_select is ", n_select, ", the pool has ", arguments.width,
                " rows");
}

// weights [B, m] for a support of that shape, float32 or float64.
inline void check_weights(const SelectionArguments& arguments, const Tensor& weights) {
  const bool wide = dtype_of(weights) == ScalarType::Double;
  check_tensor(arguments.op, "weights", weights, wide ? ScalarType::Double : ScalarType::Float,
               {arguments.batch, arguments.width}, arguments.pool_name, arguments.pool);
}

// current [B, d] beside query [B, d].
inline void check_current(const SelectionArguments& arguments, const Tensor& current) {
  const Tensor& query = arguments.query;
  check_tensor(arguments.op, "current", current, dtype_of(query), {arguments.batch, arguments.dim},
               "query", query);
}

// The tensors of simplex_lstsq and nnls. With a Gram matrix they are float32 or float64, the pool
// is [K, K] or [B, K, K] and the query the products [B, K].
inline SelectionArguments check_lstsq(const char* op, const Tensor& pool, const Tensor& query,
                                      const std::optional<Tensor>& pool_sizes, bool is_gram) {
  if (is_gram && pool.dim() >= 2 && pool.size(pool.dim() - 1) != pool.size(pool.dim() - 2))
    value_error(op, "gram must be square, got shape ", shape_text(pool.sizes()));
  SelectionArguments arguments =
      check_arguments(op, is_gram ? "gram" : "pool", pool, query, "pool_sizes", pool_sizes);
  if (!is_gram) return arguments;
  arguments.query_name = "products";
  const ScalarType dtype = dtype_of(pool);
  if (dtype != ScalarType::Float && dtype != ScalarType::Double)
    value_error(op, "gram must be float32 or float64, got ", dtype_name(dtype));
  return arguments;
}

// Cycles: most problems take fewer than they have rows.
inline int64_t check_max_iter(const SelectionArguments& arguments,
                              const std::optional<int64_t>& max_iter) {
  if (max_iter) check_range(arguments.op, "max_iter", *max_iter, 0);
  return max_iter.value_or(3 * arguments.width);
}

// The tensors of lstsq_adjoint. The query of the arguments is the weights.
inline SelectionArguments check_adjoint(const Tensor& pool, const Tensor& weights,
                                        const Tensor& gradient, bool is_gram) {
  const char* op = "lstsq_adjoint";
  check_floating(op, "pool", pool);
  check_dim(op, "weights", weights, 2);
  if (pool.dim() != 3) check_dim(op, "pool", pool, 2);
  check_storage(op, "pool", pool);
  const int64_t batch = pool.dim() == 3 ? pool.size(0) : weights.size(0);
  const int64_t width = pool.size(pool.dim() - 2), dim = pool.size(pool.dim() - 1);
  if (is_gram && width != dim) value_error(op, "gram must be square");
  check_tensor(op, "weights", weights, real_type(pool), {batch, width}, "pool", pool);
  check_tensor(op, "gradient", gradient, ScalarType::Double, {batch, width}, "pool", pool);
  return {op, "pool", "", pool, weights, std::nullopt, batch, width, dim};
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

// The vectors of each query as one array.
inline Tensor dense_query(const SelectionArguments& arguments) {
  const Tensor& query = arguments.query;
  return query.dim() == 2 ? with_dense_rows(query) : torch::stable::contiguous(query);
}

}  // namespace hullft
