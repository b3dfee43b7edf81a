// How one query's answer goes into the output tensors.
#pragma once

#include "fw_solver.h"
#include "pool.h"

namespace hullft {

class SelectionOutput {
 public:
  using Tensors = SelectionTensors::Tuple;

  SelectionOutput(const Tensor& pool, int64_t batch, int64_t n_select)
      : n_select_(n_select),
        wide_(real_type(pool) == ScalarType::Double),
        out_(pool, batch, n_select) {}

  // Threads write disjoint queries.
  void write(int64_t b, const FwAnswer& answer) const {
    int64_t* indices = integers(out_.indices) + b * n_select_;
    int64_t* counts = integers(out_.counts) + b * n_select_;
    for (int64_t i = 0; i < n_select_; ++i) {
      const bool set = i < answer.support_size;
      indices[i] = set ? answer.indices[size_t(i)] : -1;
      counts[i] = set ? answer.counts[size_t(i)] : 0;
      write_real(out_.weights, b * n_select_ + i, set ? answer.weights[size_t(i)] : 0.0);
    }
    integers(out_.support_size)[b] = answer.support_size;
    integers(out_.num_iter)[b] = answer.num_iter;
    write_real(out_.residual, b, answer.residual);
    write_real(out_.gap, b, answer.gap);
  }

  Tensors tensors() const { return out_.tuple(); }

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
  SelectionTensors out_;
};

}  // namespace hullft
