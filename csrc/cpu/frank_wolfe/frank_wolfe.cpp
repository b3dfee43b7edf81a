// fw_select on the CPU. Schema: csrc/ops.cpp.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "../../host/fw_options.h"
#include "../memory.h"
#include "../row_counts.h"
#include "../select_batch.h"
#include "../thread_solver.h"
#include "exact_correlations.h"
#include "fw_solver.h"
#include "lstsq_solver.h"
#include "screened_correlations.h"

namespace hullft {
namespace {

// Steps: screened for float32 and narrower pools; what cannot be screened, or not to its end, and
// float64 are solved exactly.
template <typename T>
class StepSolver {
 public:
  bool solve(const FwOptions& options, const QueryPool<T>& in, SelectionAnswer& answer) {
    return screened_.solve(options, in, answer) || exact_.solve(options, in, answer);
  }

 private:
  FwSolver<T, ScreenedCorrelations<T>> screened_;
  FwSolver<T, ExactCorrelations<T>> exact_;
};

template <>
class StepSolver<double> : public FwSolver<double, ExactCorrelations<double>> {};

// "corrective", and the counts for its weights.
template <typename T>
class CorrectiveSelection {
 public:
  bool solve(const FwOptions& options, const QueryPool<T>& in, SelectionAnswer& answer) {
    const CorrectiveOptions corrective{options.max_iter, options.tol, options.gap_tol,
                                       options.max_support};
    if (!solver_.solve(corrective, in, answer, solver_.kLongRow)) return false;
    rows_.clear();
    for (const int64_t k : answer.indices) rows_.push_back(in.rows[k]);
    answer.counts.assign(rows_.size(), 0);
    return counts_.count(rows_.data(), answer.support_size, in.query, in.d, false,
                         answer.weights.data(), options.n_select, options.swap_passes,
                         answer.counts.data());
  }

 private:
  LstsqSolver<T, Constraint::kSimplex> solver_;
  std::vector<const T*> rows_;
  RowCounts<T> counts_;
};

// Bytes of a query's quantized pool and per-candidate arrays.
double screening_bytes(const SelectionArguments& arguments, const Sizes& sizes) {
  constexpr double kCandidateBytes = 64;
  const bool screened = arguments.pool.scalar_type() != ScalarType::Double;
  const double row_bytes = screened ? 2.0 * double(quantized_width(arguments.dim)) : 0;
  return double(sizes.largest()) * (row_bytes + kCandidateBytes);
}

SelectionOutput::Tensors fw_select(const Tensor& pool, const Tensor& query, int64_t n_select,
                                   int64_t max_iter, double tol, double gap_tol,
                                   const std::string& variant, int64_t swap_passes,
                                   const std::optional<int64_t>& max_support,
                                   const std::optional<Tensor>& pool_sizes,
                                   const std::optional<Tensor>& candidates) {
  const SelectionArguments arguments =
      check_selection("fw_select", pool, query, pool_sizes, candidates);
  const FwOptions options = check_fw_options(arguments.op, n_select, max_iter, tol, gap_tol,
                                             variant, swap_passes, max_support);
  const int64_t batch = arguments.batch;
  const Sizes sizes(arguments);
  check_memory(
      arguments, n_select,
      selection_bytes(arguments, n_select) + at_once(batch) * screening_bytes(arguments, sizes));
  const SelectionOutput output(pool, batch, n_select);
  // A column of the Gram matrix for each atom.
  const double work_a_row = double(arguments.dim) * double(std::min(n_select, sizes.largest()));
  const double work = double(batch) * kStepsWork + work_a_row * sizes.total();
  dispatch_floating(pool.scalar_type(), [&](auto t) {
    using T = decltype(t);
    const auto solve_with = [&](const auto& make_solver) {
      select_batch<T>(arguments, sizes, work, output, make_solver);
    };
    if (options.variant == Variant::kCorrective)
      solve_with([&] { return ThreadSolver<CorrectiveSelection<T>, FwOptions>(options); });
    else
      solve_with([&] { return ThreadSolver<StepSolver<T>, FwOptions>(options); });
  });
  return output.tensors();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CPU, m) { m.impl("fw_select", TORCH_BOX(&fw_select)); }

}  // namespace hullft
