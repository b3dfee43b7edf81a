// Least squares of one query, from the rows or, where that is faster, from their products.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../row_products.h"
#include "corrective_solver.h"
#include "gram_of_rows.h"
#include "residual_correlations.h"

namespace hullft {

template <typename T, Constraint kConstraint>
class LstsqSolver {
 public:
  // By products where rows have `least` values.
  bool solve(const CorrectiveOptions& options, const QueryPool<T>& in, SelectionAnswer& answer,
             int64_t least = 0) {
    return (in.d >= least && are_long(in.n_rows, in.d) && solve_by_products(options, in, answer)) ||
           by_rows_.solve(options, in, answer);
  }

  // Of these, which come from memory, each pass counts. EPYC (AVX-512), 40 rows of 10^6 numbers:
  // the products take 0.07 of the time of the rows.
  static constexpr int64_t kLongRow = int64_t(1) << 15;

 private:
  // Whether one pass for the Gram matrix, of n^2 d / 2 multiply-adds, takes less than the passes of
  // the solver. Xeon (AVX-512): 0.71 of their time for 20 x 300, 0.14 for 100 x 10,000; 1.2 for
  // 64 x 1,000.
  static bool are_long(int64_t n_rows, int64_t d) {
    return n_rows <= kMostRows && d >= kLeastRatio * n_rows && 4 * d >= n_rows * n_rows;
  }
  static constexpr int64_t kMostRows = 256, kLeastRatio = 8;

  // False where the rounding of products may be too much, or a product is not finite.
  bool solve_by_products(const CorrectiveOptions& options, const QueryPool<T>& in,
                         SelectionAnswer& answer) {
    GramProblem problem = products_.multiply(in);
    // Where the options may end the solve, the order of the rows matters: it begins as by rows.
    if (std::min(options.max_support, options.max_iter) < in.n_rows) problem.first = first_row(in);
    if (options.tol > 0) problem.query_square = products_.query_square();
    if (!by_products_.solve(options, problem, answer)) return false;
    double longest = problem.square, sum = 0, terms = 0;
    for (int64_t k = 0; k < problem.n_rows; ++k)
      longest = std::max(longest, problem.gram[k * problem.stride + k]);
    for (size_t i = 0; i < answer.indices.size(); ++i) {
      const int64_t k = answer.indices[i];
      sum += answer.weights[i];
      terms += answer.weights[i] * std::sqrt(problem.gram[k * problem.stride + k]);
    }
    // How far the squared residual may be above its minimum: what the products say, unless the
    // options ended the solve there, and their rounding.
    constexpr double kRounding = 8 * epsilon<double>();
    const double reach = std::sqrt(longest) + terms;
    const bool ended = answer.gap <= options.gap_tol || answer.num_iter >= options.max_iter ||
                       answer.support_size >= options.max_support ||
                       answer.residual < options.tol * std::sqrt(problem.query_square);
    const double excess = (ended ? 0 : sum * answer.gap) + kRounding * terms * reach;
    if (!(excess <= kMostExcess * longest)) return false;
    if (in.d < kLongRow || !(answer.residual > kFar * reach))
      answer.residual = products_.residual(answer.indices, answer.weights);
    return true;
  }

  int64_t first_row(const QueryPool<T>& in) {
    std::vector<double> products(size_t(padded(in.n_rows)));
    RowProducts<T> rows;
    rows.begin(in.rows, in.n_rows, in.d, in.share_rows);
    rows.multiply(in.query, products.data());
    return std::max_element(products.begin(), products.begin() + in.n_rows) - products.begin();
  }

  static constexpr double kMostExcess = 1e-14;  // as a share of the largest square
  static constexpr double kFar = 0.1;  // beyond it the products have all digits of the residual

  CorrectiveSolver<ResidualCorrelations<T, kConstraint>> by_rows_;
  GramOfRows<T, kConstraint> products_;
  CorrectiveSolver<GramCorrelations<kConstraint>> by_products_;
};

}  // namespace hullft
