// Solves one query of fw_select by the variant that the options name.
#pragma once

#include <cstdint>
#include <vector>

#include "../../host/fw_options.h"
#include "../integerizer.h"
#include "corrective_solver.h"
#include "exact_correlations.h"
#include "fw_solver.h"
#include "residual_correlations.h"
#include "screened_correlations.h"

namespace hullft {

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

}  // namespace hullft
