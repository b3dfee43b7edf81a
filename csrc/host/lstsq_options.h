// The options of simplex_lstsq and nnls, and the tensors of their adjoint.
#pragma once

#include <cstdint>
#include <optional>

#include "selection_arguments.h"
#include "selection_tensors.h"

namespace hullft {

// The tensors of a call. With a Gram matrix they are float32 or float64, the pool is [K, K] or
// [B, K, K] and the query the products [B, K].
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

}  // namespace hullft
