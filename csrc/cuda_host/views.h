// Tensors as the raw views that the kernels take.
#pragma once

#include <array>
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
inline void check_launch(const SelectionArguments& arguments) {
  constexpr int64_t kMostCandidates = int64_t(1) << 30;
  check_range(arguments.op, "the batch of query", arguments.batch, 0);
  if (arguments.width > kMostCandidates)
    value_error(arguments.op, "on CUDA a query has at most ", kMostCandidates, " candidates, got ",
                arguments.width);
}

// Refuses what no device has. Below it no count of bytes comes near the end of 64 bits.
inline void check_workspace(const char* op, double bytes) {
  constexpr double kMost = double(int64_t(1) << 50);
  if (bytes > kMost)
    value_error(op, "on CUDA it would need ", whole_gigabytes(bytes), " GiB of workspace");
}

// [B]: how many of a query's candidates [B, K] are not -1. Where a -1 stands before others, a
// kernel meets it among so many, and the query fails.
inline Tensor count_present(const Tensor& candidates) {
  const std::array<int64_t, 1> last{1};
  std::array<StableIValue, 2> stack{torch::stable::detail::from(candidates)};
  // ~x is 0 for -1 alone.
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::bitwise_not", "", stack.data(), TORCH_ABI_VERSION));
  stack[1] = torch::stable::detail::from(torch::headeronly::IntHeaderOnlyArrayRef(last));
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::count_nonzero", "dim_IntList", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Dense tensors behind a view; they must outlive the launch's enqueueing.
class SelectionInputs {
 public:
  explicit SelectionInputs(const SelectionArguments& arguments)
      : width_(arguments.width),
        pool_(with_dense_rows(arguments.pool)),
        query_(dense_query(arguments)) {
    if (arguments.sizes) sizes_ = torch::stable::contiguous(*arguments.sizes);
    if (!arguments.candidates) return;
    candidates_ = torch::stable::contiguous(*arguments.candidates);
    if (!sizes_) sizes_ = count_present(*candidates_);
  }

  QueryView query() const { return {query_.const_data_ptr(), query_.stride(0)}; }

  PoolView pool() const {
    const int64_t rows_dim = pool_.dim() - 2;
    PoolView view{pool_.const_data_ptr(),
                  rows_dim ? pool_.stride(0) : 0,
                  pool_.stride(rows_dim),
                  pool_.size(rows_dim),
                  candidates_ ? candidates_->const_data_ptr<int64_t>() : nullptr,
                  candidates_ ? width_ : 0,
                  sizes_ ? sizes_->const_data_ptr<int64_t>() : nullptr,
                  int(width_),
                  pool_.size(rows_dim + 1),
                  storage_of(pool_),
                  false};
    view.vectors = reads_vectors(view, query());
    return view;
  }

 private:
  int64_t width_;
  Tensor pool_, query_;
  std::optional<Tensor> candidates_, sizes_;
};

// Indices and counts: of a selection, null for dense weights.
template <typename Tensors>
FwOutputs outputs_of(const Tensors& t, int64_t* indices = nullptr, int64_t* counts = nullptr) {
  return {indices,
          counts,
          t.support_size.template mutable_data_ptr<int64_t>(),
          t.num_iter.template mutable_data_ptr<int64_t>(),
          t.weights.mutable_data_ptr(),
          t.residual.mutable_data_ptr(),
          t.gap.mutable_data_ptr()};
}

inline FwOutputs outputs_of(const SelectionTensors& t) {
  return outputs_of(t, t.indices.mutable_data_ptr<int64_t>(), t.counts.mutable_data_ptr<int64_t>());
}

}  // namespace hullft
