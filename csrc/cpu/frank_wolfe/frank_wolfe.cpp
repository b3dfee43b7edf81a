// fw_select on the CPU. Schema: csrc/ops.cpp.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "../../host/fw_options.h"
#include "../integerizer.h"
#include "../memory.h"
#include "../select_batch.h"
#include "../thread_solver.h"
#include "corrective_solver.h"
#include "exact_correlations.h"
#include "fw_solver.h"
#include "residual_correlations.h"
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
  bool solve(const FwOptions& options, const QueryPool<T>& in, const UnitPool<T>* units,
             SelectionAnswer& answer) {
    const CorrectiveOptions corrective{options.max_iter, options.tol, options.gap_tol,
                                       options.max_support};
    if (!solver_.solve(corrective, in.n_rows, answer, in, units)) return false;
    const int64_t m = answer.support_size;
    double* gram = gram_.reserve(m * m);
    double* b = b_.reserve(m);
    multiply(in, answer.indices, gram, b);
    answer.counts.assign(size_t(m), 0);
    integerizer_.run(gram, b, answer.weights.data(), m, options.n_select, options.swap_passes,
                     answer.counts.data());
    return true;
  }

 private:
  // Gram matrix [m, m] of some rows, and their products with the query [m].
  void multiply(const QueryPool<T>& in, const std::vector<int64_t>& indices, double* gram,
                double* b) {
    const int64_t m = int64_t(indices.size());
    rows_.clear();
    for (const int64_t k : indices) rows_.push_back(in.rows[k]);
    const auto few = dot_kernels<T>().few;
    few(rows_.data(), m, in.query, in.d, b);
    for (int64_t i = 0; i < m; ++i) {
      few(rows_.data(), i + 1, rows_[size_t(i)], in.d, gram + i * m);
      for (int64_t j = 0; j < i; ++j) gram[j * m + i] = gram[i * m + j];
    }
  }

  CorrectiveSolver<ResidualCorrelations<T, Constraint::kSimplex>> solver_;
  std::vector<const T*> rows_;
  AlignedDoubles gram_, b_;
  Integerizer integerizer_;
};

template <typename T>
struct FwBatchOptions {
  FwOptions options;
  const UnitPool<T>* units;  // of a pool that all queries share, for "corrective"
};

template <typename T>
class FwQuerySolver {
 public:
  bool solve(const FwBatchOptions<T>& batch, const QueryPool<T>& in, SelectionAnswer& answer) {
    if (batch.options.variant == Variant::kCorrective)
      return corrective_.solve(batch.options, in, batch.units, answer);
    return steps_.solve(batch.options, in, answer);
  }

 private:
  StepSolver<T> steps_;
  CorrectiveSelection<T> corrective_;
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
      check_selection("fw_select", "fw_select_indexed", pool, query, pool_sizes, candidates);
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
    std::optional<SharedUnitPool<T>> units;
    if (options.variant == Variant::kCorrective) units.emplace(arguments);
    const FwBatchOptions<T> batch_options{options, units ? units->get() : nullptr};
    select_batch<T>(arguments, sizes, work, output, [&] {
      return ThreadSolver<FwQuerySolver<T>, FwBatchOptions<T>>(batch_options);
    });
  });
  return output.tensors();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CPU, m) { m.impl("fw_select", TORCH_BOX(&fw_select)); }

}  // namespace hullft
