// The tensors that the selection operators return.
#pragma once

#include <array>
#include <tuple>

#include "empty.h"

namespace hullft {

// The tensors that simplex_lstsq and nnls return: weights [B, width], the others [B].
struct LstsqTensors {
  using Tuple = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

  LstsqTensors(const Tensor& pool, int64_t batch, int64_t width) {
    const ScalarType real = real_type(pool);
    const std::array<int64_t, 1> queries{batch};
    weights = empty_beside(pool, std::array<int64_t, 2>{batch, width}, real);
    residual = empty_beside(pool, queries, real);
    gap = empty_beside(pool, queries, real);
    support_size = empty_beside(pool, queries, ScalarType::Long);
    num_iter = empty_beside(pool, queries, ScalarType::Long);
  }

  Tuple tuple() const { return {weights, residual, gap, support_size, num_iter}; }

  Tensor weights, residual, gap, support_size, num_iter;
};

// The tensors that every selection operator returns.
struct SelectionTensors : LstsqTensors {
  using Tuple = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

  SelectionTensors(const Tensor& pool, int64_t batch, int64_t n_select)
      : LstsqTensors(pool, batch, n_select) {
    const std::array<int64_t, 2> rows{batch, n_select};
    indices = empty_beside(pool, rows, ScalarType::Long);
    counts = empty_beside(pool, rows, ScalarType::Long);
  }

  Tuple tuple() const { return {indices, weights, counts, support_size, residual, gap, num_iter}; }

  Tensor indices, counts;
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
    const std::array<int64_t, 1> queries{batch};
    vertex = empty_beside(pool, queries, ScalarType::Long);
    correlation = empty_beside(pool, queries, real_type(pool));
    gamma = empty_beside(pool, queries, real_type(pool));
    gap = empty_beside(pool, queries, real_type(pool));
  }

  Tuple tuple() const { return {vertex, correlation, gamma, gap}; }

  Tensor vertex, correlation, gamma, gap;
};

}  // namespace hullft
