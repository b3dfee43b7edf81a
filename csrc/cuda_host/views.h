// Tensors as the raw views that the kernels take.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>

#include "../cuda/frank_wolfe.h"
#include "../cuda/pool_view.h"
#include "../host/selection_arguments.h"
#include "../host/selection_tensors.h"

namespace hullft {

inline Storage storage_of(const Tensor& t) {
  switch (dtype_of(t)) {
    case ScalarType::Double:
      return Storage::kFloat64;
    case ScalarType::BFloat16:
      return Storage::kBFloat16;
    case ScalarType::Half:
      return Storage::kFloat16;
    default:
      return Storage::kFloat32;
  }
}

// A launch takes tensors of one pair of dtypes.
using Storages = std::pair<Storage, Storage>;

// A block counts the candidates of its query in 32 bits, all of its threads on at a time.
inline void check_launch(const char* op, int64_t batch, int64_t candidates) {
  constexpr int64_t kMostCandidates = int64_t(1) << 30;
  check_range(op, "the batch of query", batch, 0);
  if (candidates > kMostCandidates)
    value_error(op, "on CUDA a query has at most ", kMostCandidates, " candidates, got ",
                candidates);
}

// Refuses what no device has. Below it no count of bytes comes near the end of 64 bits.
inline void check_workspace(const char* op, double bytes) {
  constexpr double kMost = double(int64_t(1) << 50);
  if (bytes > kMost)
    value_error(op, "on CUDA it would need ", whole_gigabytes(bytes), " GiB of workspace");
}

// Dense tensors behind a view; they must outlive the launch's enqueueing.
class SelectionInputs {
 public:
  SelectionInputs(const Tensor& pool, const Tensor& query, const std::optional<Tensor>& sizes)
      : pool_(with_dense_rows(pool)), query_(with_dense_rows(query)) {
    if (sizes) sizes_ = torch::stable::contiguous(*sizes);
  }

  // Pools are rows of one matrix, candidates [B, K] says which.
  void pick(const Tensor& candidates) { candidates_ = torch::stable::contiguous(candidates); }

  QueryView query() const { return {query_.const_data_ptr(), query_.stride(0)}; }

  int64_t candidates() const {
    return candidates_ ? candidates_->size(1) : pool_.size(pool_.dim() - 2);
  }

  PoolView pool() const {
    const int64_t rows_dim = pool_.dim() - 2;
    PoolView view{pool_.const_data_ptr(),
                  rows_dim ? pool_.stride(0) : 0,
                  pool_.stride(rows_dim),
                  pool_.size(rows_dim),
                  candidates_ ? candidates_->const_data_ptr<int64_t>() : nullptr,
                  candidates_ ? candidates_->size(1) : 0,
                  sizes_ ? sizes_->const_data_ptr<int64_t>() : nullptr,
                  int(candidates()),
                  pool_.size(rows_dim + 1),
                  storage_of(pool_),
                  false};
    view.vectors = reads_vectors(view, query());
    return view;
  }

 private:
  Tensor pool_, query_;
  std::optional<Tensor> candidates_, sizes_;
};

inline FwOutputs outputs_of(const SelectionTensors& t) {
  return {t.indices.mutable_data_ptr<int64_t>(),
          t.counts.mutable_data_ptr<int64_t>(),
          t.support_size.mutable_data_ptr<int64_t>(),
          t.num_iter.mutable_data_ptr<int64_t>(),
          t.weights.mutable_data_ptr(),
          t.residual.mutable_data_ptr(),
          t.gap.mutable_data_ptr()};
}

}  // namespace hullft
