// The tensors that every selection operator returns, and how one query's answer goes into them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <array>
#include <tuple>

#include "fw_solver.h"
#include "pool.h"

namespace hullft {

class SelectionOutput {
 public:
  using Tensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

  // float64 pools get float64 weights, all others float32.
  SelectionOutput(const Tensor& pool, int64_t batch, int64_t n_select)
      : n_select_(n_select), wide_(pool.scalar_type() == ScalarType::Double) {
    const ScalarType real = wide_ ? ScalarType::Double : ScalarType::Float;
    const std::array<int64_t, 2> rows{batch, n_select};
    const std::array<int64_t, 1> one{batch};
    indices_ = torch::stable::new_empty(pool, rows, ScalarType::Long);
    weights_ = torch::stable::new_empty(pool, rows, real);
    counts_ = torch::stable::new_empty(pool, rows, ScalarType::Long);
    support_size_ = torch::stable::new_empty(pool, one, ScalarType::Long);
    residual_ = torch::stable::new_empty(pool, one, real);
    gap_ = torch::stable::new_empty(pool, one, real);
    num_iter_ = torch::stable::new_empty(pool, one, ScalarType::Long);
  }

  // Threads write disjoint queries.
  void write(int64_t b, const FwAnswer& answer) const {
    int64_t* indices = integers(indices_) + b * n_select_;
    int64_t* counts = integers(counts_) + b * n_select_;
    for (int64_t i = 0; i < n_select_; ++i) {
      const bool set = i < answer.support_size;
      indices[i] = set ? answer.indices[size_t(i)] : -1;
      counts[i] = set ? answer.counts[size_t(i)] : 0;
      write_real(weights_, b * n_select_ + i, set ? answer.weights[size_t(i)] : 0.0);
    }
    integers(support_size_)[b] = answer.support_size;
    integers(num_iter_)[b] = answer.num_iter;
    write_real(residual_, b, answer.residual);
    write_real(gap_, b, answer.gap);
  }

  Tensors tensors() const {
    return {indices_, weights_, counts_, support_size_, residual_, gap_, num_iter_};
  }

 private:
  static int64_t* integers(const Tensor& t) { return t.mutable_data_ptr<int64_t>(); }

  void write_real(const Tensor& t, int64_t i, double value) const {
    if (wide_)
      t.mutable_data_ptr<double>()[i] = value;
    else
      t.mutable_data_ptr<float>()[i] = float(value);
  }

  int64_t n_select_;
  bool wide_;
  Tensor indices_, weights_, counts_, support_size_, residual_, gap_, num_iter_;
};

}  // namespace hullft
