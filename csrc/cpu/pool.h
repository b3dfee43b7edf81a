// Pools as the CPU operators see them: for each query a list of row pointers, whether the rows lie
// in one tensor a batch, in a shared one, or are picked out of a big matrix.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "../host/selection_arguments.h"
#include "storage.h"

namespace hullft {

// Rows of a matrix, int64 [B, K] in any strides.
class Candidates {
 public:
  explicit Candidates(const Tensor& t)
      : data_(t.const_data_ptr<int64_t>()), batch_stride_(t.stride(0)), stride_(t.stride(1)) {}

  int64_t operator()(int64_t b, int64_t k) const { return data_[b * batch_stride_ + k * stride_]; }

 private:
  const int64_t* data_;
  int64_t batch_stride_, stride_;
};

// How many candidates each query has: as many as the sizes say; without sizes, all up to the
// -1s at the end. Sizes and candidates may be views of one value that no memory could hold
// dense.
class Sizes {
 public:
  // Throws where a size is below `least` or a candidate is no row.
  explicit Sizes(const SelectionArguments& arguments, int64_t least = 0)
      : batch_(arguments.batch), width_(arguments.width) {
    if (arguments.sizes) {
      sizes_ = arguments.sizes->const_data_ptr<int64_t>();
      stride_ = arguments.sizes->stride(0);
    }
    if (arguments.candidates) candidates_.emplace(*arguments.candidates);
    for (int64_t b = 0; is_ragged() && b < batch_; ++b) {
      if (sizes_) check_size(arguments, b, least);
      if (candidates_) check_candidates(arguments, b);
    }
  }

  int64_t operator[](int64_t b) const {
    if (sizes_) return sizes_[b * stride_];
    int64_t n = width_;
    while (candidates_ && n > 0 && (*candidates_)(b, n - 1) == -1) --n;
    return n;
  }

  double total() const {
    if (!is_ragged()) return double(width_) * double(batch_);
    double sum = 0;
    for (int64_t b = 0; b < batch_; ++b) sum += double((*this)[b]);
    return sum;
  }

  int64_t largest() const {
    if (!is_ragged()) return width_;
    int64_t most = 0;
    for (int64_t b = 0; b < batch_; ++b) most = std::max(most, (*this)[b]);
    return most;
  }

 private:
  bool is_ragged() const { return sizes_ || candidates_; }

  void check_size(const SelectionArguments& arguments, int64_t b, int64_t least) const {
    const int64_t size = (*this)[b];
    if (size < least || size > width_)
      value_error(arguments.op, arguments.sizes_name, "[", b, "] is ", size, ", must be in ", least,
                  "..", width_);
  }

  void check_candidates(const SelectionArguments& arguments, int64_t b) const {
    const int64_t n = (*this)[b], n_rows = arguments.pool.size(0);
    for (int64_t k = 0; k < n; ++k) {
      const int64_t row = (*candidates_)(b, k);
      if (row >= 0 && row < n_rows) continue;
      const char* advice = row != -1 ? ""
                           : sizes_  ? "; without pool_sizes, -1 at the end is absent"
                                     : "; -1 is absent at the end alone";
      value_error(arguments.op, "candidates has ", row, " at position ", k, " for query ", b,
                  ", pool has ", n_rows, " rows", advice);
    }
  }

  int64_t batch_, width_;
  const int64_t* sizes_ = nullptr;
  int64_t stride_ = 0;
  std::optional<Candidates> candidates_;
};

template <typename T>
class Pool {
 public:
  explicit Pool(const SelectionArguments& arguments)
      : pool_(with_dense_rows(arguments.pool)), base_(data<T>(pool_)) {
    const int64_t rows_dim = pool_.dim() - 2;
    batch_stride_ = rows_dim ? pool_.stride(0) : 0;
    row_stride_ = pool_.stride(rows_dim);
    if (arguments.candidates) candidates_.emplace(*arguments.candidates);
  }

  // Whether all queries have the same rows.
  bool is_shared() const { return batch_stride_ == 0 && !candidates_; }

  // The row of the tensor that candidate k of query b is.
  int64_t row(int64_t b, int64_t k) const { return candidates_ ? (*candidates_)(b, k) : k; }

  void rows(int64_t b, int64_t n, std::vector<const T*>& out) const {
    out.resize(size_t(n));
    const T* first = base_ + b * batch_stride_;
    for (int64_t k = 0; k < n; ++k) out[size_t(k)] = first + row(b, k) * row_stride_;
  }

 private:
  Tensor pool_;
  const T* base_;
  int64_t batch_stride_;  // 0: shared by the batch, or indexed
  int64_t row_stride_;
  std::optional<Candidates> candidates_;
};

}  // namespace hullft
