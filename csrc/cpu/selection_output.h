// How one query's answer goes into the output tensors.
#pragma once

#include <algorithm>

#include "../host/selection_tensors.h"
#include "selection_answer.h"
#include "storage.h"

namespace hullft {

class SelectionOutput {
 public:
  using Tensors = SelectionTensors::Tuple;
  using Answer = SelectionAnswer;

  SelectionOutput(const Tensor& pool, int64_t batch, int64_t n_select)
      : n_select_(n_select),
        out_(pool, batch, n_select),
        indices_(integers(out_.indices)),
        counts_(integers(out_.counts)),
        support_size_(integers(out_.support_size)),
        num_iter_(integers(out_.num_iter)),
        weights_(out_.weights),
        residual_(out_.residual),
        gap_(out_.gap) {}

  // False when a value is too large for the outputs' dtype. Threads write disjoint queries.
  bool write(int64_t b, const SelectionAnswer& answer) const {
    for (int64_t i = 0; i < n_select_; ++i) {
      const bool set = i < answer.support_size;
      const int64_t at = b * n_select_ + i;
      indices_[at] = set ? answer.indices[size_t(i)] : -1;
      counts_[at] = set ? answer.counts[size_t(i)] : 0;
      weights_.set(at, set ? answer.weights[size_t(i)] : 0.0);
    }
    support_size_[b] = answer.support_size;
    num_iter_[b] = answer.num_iter;
    const bool residual_fits = residual_.set(b, answer.residual);
    return gap_.set(b, std::max(answer.gap, 0.0)) && residual_fits;  // below 0 only by rounding
  }

  // Result for an empty pool.
  bool write_nothing(int64_t b, double residual, double /*squares*/) const {
    SelectionAnswer nothing;
    nothing.residual = residual;
    return write(b, nothing);
  }

  Tensors tensors() const { return out_.tuple(); }

 private:
  static int64_t* integers(const Tensor& t) { return t.mutable_data_ptr<int64_t>(); }

  int64_t n_select_;
  SelectionTensors out_;
  int64_t *indices_, *counts_, *support_size_, *num_iter_;
  RealOutput weights_, residual_, gap_;
};

}  // namespace hullft
