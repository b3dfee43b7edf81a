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

// Sizes of a ragged batch, or the full size for every query.
class Sizes {
 public:
  Sizes(const char* op, const char* name, const std::optional<Tensor>& sizes, int64_t full,
        int64_t batch, int64_t least = 0)
      : full_(full) {
    if (!sizes) return;
    const Tensor dense = torch::stable::contiguous(*sizes);
    const int64_t* values = dense.const_data_ptr<int64_t>();
    sizes_.assign(values, values + batch);
    for (int64_t b = 0; b < batch; ++b)
      if (sizes_[size_t(b)] < least || sizes_[size_t(b)] > full)
        value_error(op, name, "[", b, "] is ", sizes_[size_t(b)], ", must be in ", least, "..",
                    full);
  }
  int64_t operator[](int64_t b) const { return sizes_.empty() ? full_ : sizes_[size_t(b)]; }
  double total(int64_t batch) const {
    double sum = 0;
    for (int64_t b = 0; b < batch; ++b) sum += double((*this)[b]);
    return sum;
  }
  int64_t largest() const {
    return sizes_.empty() ? full_ : *std::max_element(sizes_.begin(), sizes_.end());
  }

 private:
  int64_t full_;
  std::vector<int64_t> sizes_;
};

template <typename T>
struct Pool {
  const T* base;
  int64_t batch_stride;  // 0: shared by the batch, or indexed
  int64_t row_stride;
  const int64_t* candidates;  // [B, K], or null
  int64_t candidates_stride;

  // Whether all queries have the same rows.
  bool is_shared() const { return batch_stride == 0 && !candidates; }

  void rows(int64_t b, int64_t n, std::vector<const T*>& out) const {
    out.resize(size_t(n));
    const T* first = base + b * batch_stride;
    const int64_t* picked = candidates ? candidates + b * candidates_stride : nullptr;
    for (int64_t k = 0; k < n; ++k) out[size_t(k)] = first + (picked ? picked[k] : k) * row_stride;
  }
};

template <typename T>
Pool<T> pool_of(const Tensor& pool) {
  const int64_t rows_dim = pool.dim() - 2;
  return {data<T>(pool), rows_dim ? pool.stride(0) : 0, pool.stride(rows_dim), nullptr, 0};
}

// Rows of one matrix; candidates dense, int64 [B, K].
template <typename T>
Pool<T> pool_of(const Tensor& embeddings, const Tensor& candidates) {
  return {data<T>(embeddings), 0, embeddings.stride(0), candidates.const_data_ptr<int64_t>(),
          candidates.size(1)};
}

inline void check_candidates(const char* op, const Tensor& candidates, const Sizes& sizes,
                             int64_t n_embeddings) {
  const int64_t* picked = candidates.const_data_ptr<int64_t>();
  const int64_t width = candidates.size(1);
  for (int64_t b = 0; b < candidates.size(0); ++b)
    for (int64_t k = 0; k < sizes[b]; ++k) {
      const int64_t row = picked[b * width + k];
      if (row < 0 || row >= n_embeddings)
        value_error(op, "candidates[", b, ", ", k, "] is ", row, ", embeddings has ", n_embeddings,
                    " rows", row == -1 ? "; pool_sizes leaves out -1 at the end" : "");
    }
}

}  // namespace hullft
