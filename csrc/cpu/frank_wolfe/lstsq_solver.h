// Solves one query of simplex_lstsq or nnls.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "corrective_solver.h"
#include "gram_of_rows.h"
#include "residual_correlations.h"

namespace hullft {

template <typename T>
struct LstsqOptions {
  CorrectiveOptions options;
  const UnitPool<T>* units;  // of a pool that all queries share, or null
};

// From the rows.
template <typename T, Constraint kConstraint>
class LstsqSolver {
 public:
  bool solve(const LstsqOptions<T>& batch, const QueryPool<T>& in, SelectionAnswer& answer) {
    return (are_long(in.n_rows, in.d) && solve_by_products(batch, in, answer)) ||
           solver_.solve(batch.options, in.n_rows, answer, in, batch.units);
  }

  // Whether one pass for the Gram matrix, of n^2 d / 2 multiply-adds, takes less than the passes of
  // the solver. Xeon (AVX-512): 0.71 of their time for 20 x 300, 0.14 for 100 x 10,000; 1.2 for
  // 64 x 1,000.
  static bool are_long(int64_t n_rows, int64_t d) {
    return n_rows <= kMostRows && d >= kLeastRatio * n_rows && 4 * d >= n_rows * n_rows;
  }

 private:
  static constexpr int64_t kMostRows = 256, kLeastRatio = 8;

  // False where the rounding of products may be too much, or a product is not finite.
  bool solve_by_products(const LstsqOptions<T>& batch, const QueryPool<T>& in,
                         SelectionAnswer& answer) {
    const GramProblem problem = products_.multiply(in);
    if (!by_products_.solve(batch.options, in.n_rows, answer, problem)) return false;
    if (!(excess(problem, batch.options, answer) <= kMostExcess)) return false;
    answer.residual = products_.residual(answer.indices, answer.weights);
    return true;
  }

  // How far the squared residual may be above its minimum, as a share of the largest square: what
  // the products say, unless the options ended the solve there, and their rounding.
  static double excess(const GramProblem& problem, const CorrectiveOptions& options,
                       const SelectionAnswer& answer) {
    constexpr double kRounding = 8 * epsilon<double>();
    double longest = problem.square, sum = 0, terms = 0;
    for (int64_t k = 0; k < problem.n; ++k)
      longest = std::max(longest, problem.gram[k * problem.stride + k]);
    for (size_t i = 0; i < answer.indices.size(); ++i) {
      const int64_t k = answer.indices[i];
      sum += answer.weights[i];
      terms += answer.weights[i] * std::sqrt(problem.gram[k * problem.stride + k]);
    }
    const bool ended = answer.gap <= options.gap_tol || answer.num_iter >= options.max_iter;
    const double violation = ended ? 0 : sum * answer.gap;
    return longest > 0 ? (violation + kRounding * terms * (std::sqrt(longest) + terms)) / longest
                       : 0;
  }

  static constexpr double kMostExcess = 1e-14;

  CorrectiveSolver<ResidualCorrelations<T, kConstraint>> solver_;
  GramOfRows<T, kConstraint> products_;
  CorrectiveSolver<GramCorrelations<kConstraint>> by_products_;
};

// Where the rows of the pool are those of a Gram matrix and the query its products. The residual of
// the answer is the square less that of the query.
template <typename T, Constraint kConstraint>
class GramSolver {
 public:
  bool solve(const LstsqOptions<T>& batch, const QueryPool<T>& in, SelectionAnswer& answer) {
    const int64_t n = in.n_rows, stride = padded(n);
    double *gram = gram_.reserve(n * stride), *products = products_.reserve(stride);
    for (int64_t i = 0; i < n; ++i) {
      std::fill_n(gram + i * stride + n, stride - n, 0.0);
      for (int64_t j = 0; j < n; ++j)
        gram[i * stride + j] = (widen(in.rows[i][j]) + widen(in.rows[j][i])) / 2;
      products[i] = widen(in.query[i]);
    }
    const double rounding = sizeof(T) == 8 ? epsilon<double>() : double(epsilon<float>());
    const GramProblem problem{gram, n, stride, products, 0, rounding};
    if (!solver_.solve(batch.options, n, answer, problem)) return false;
    answer.residual = solver_.correlations().squared_residual();
    return true;
  }

 private:
  CorrectiveSolver<GramCorrelations<kConstraint>> solver_;
  AlignedDoubles gram_, products_;
};

}  // namespace hullft
