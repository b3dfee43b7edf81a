// Few rows that many queries share: their Gram matrix once, and block principal pivoting of as many
// queries at a time as a vector has lanes. The gap of each query comes from the rows; where it is
// more than rounding, the query is left to the solver of rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../../core/corrective.h"
#include "../aligned.h"
#include "../pool.h"
#include "../selection_answer.h"
#include "../simd/corrective_kernels.h"
#include "../simd/dot_kernels.h"
#include "../simd/pivoting_kernels.h"
#include "../wide_vectors.h"
#include "support_factor.h"

namespace hullft {

// What the queries share. On the simplex the rows are less their mean, which changes no weight and
// saves digits.
template <typename T, Constraint kConstraint>
class PivotedPool {
 public:
  // Longer rows than there are, as otherwise they depend on one another.
  static bool takes(const SelectionArguments& arguments) {
    return arguments.pool.dim() == 2 && !arguments.sizes && arguments.batch >= kFewestQueries &&
           arguments.width <= std::min(kMostPivotingRows, arguments.dim);
  }

  explicit PivotedPool(const SelectionArguments& arguments)
      : n_(arguments.width), d_(arguments.dim), width_(padded(d_)) {
    std::vector<const T*> rows;
    const Pool<T> pool(arguments);
    pool.rows(0, n_, rows);
    double *values = values_.reserve(n_ * width_), *mean = mean_.reserve(width_);
    std::fill_n(mean, width_, 0.0);
    for (int64_t k = 0; k < n_; ++k) {
      dot_kernels<T>().widen(rows[size_t(k)], d_, values + k * width_);
      rows_.push_back(values + k * width_);
    }
    const std::vector<double> shares(size_t(n_), 1 / double(n_));
    if (kSimplex) {
      combine(nullptr, rows_.data(), shares.data(), n_, mean);
      for (int64_t k = 0; k < n_; ++k) subtract(values + k * width_, mean, width_);
    }
    gram_.resize(size_t(n_ * n_));
    for (int64_t i = 0; i < n_; ++i)
      dot_kernels<double>().few(rows_.data(), n_, rows_[size_t(i)], width_, gram_.data() + i * n_);
    for (int64_t k = 0; k < n_; ++k) longest_ = std::max(longest_, gram_[size_t(k * n_ + k)]);
  }

  // Whether pivoting gives the solution to rounding for all but a few queries: no pivot of the Gram
  // matrix is near 0; on the simplex with the shift of the solver.
  bool is_well_conditioned() const {
    SupportFactor<1> factor;
    factor.begin(epsilon<double>());
    std::vector<double> entries(gram_);
    for (double& entry : entries) entry += kSimplex ? longest_ : 0;
    for (int64_t i = 0; i < n_; ++i) {
      double* row = entries.data() + i * n_;
      if (!factor.join(row, row[i], {0}, kLeastPivot)) return false;  // not finite too
    }
    return true;
  }

  int64_t rows() const { return n_; }
  int64_t width() const { return width_; }
  const double* gram() const { return gram_.data(); }
  const double* const* values() const { return rows_.data(); }
  double longest() const { return longest_; }  // square of a row

  // out = x less the mean, in float64.
  void shifted(const T* x, double* out) const {
    dot_kernels<T>().widen(x, d_, out);
    if (kSimplex) subtract(out, mean_.get(), width_);
  }

  void combine(const double* base, const double* const* rows, const double* factors, int64_t m,
               double* out) const {
    corrective_kernels().combine(base, rows, factors, m, width_, out);
  }

 private:
  static constexpr bool kSimplex = kConstraint == Constraint::kSimplex;
  static constexpr int64_t kFewestQueries = 8;
  static constexpr double kLeastPivot = 1e-9;  // beside the diagonal

  int64_t n_, d_, width_;
  AlignedDoubles values_, mean_;
  std::vector<const double*> rows_;
  std::vector<double> gram_;
  double longest_ = 0;
};

// A thread's queries.
template <typename T, Constraint kConstraint>
class PivotedQueries {
 public:
  explicit PivotedQueries(const PivotedPool<T, kConstraint>& pool)
      : pool_(pool), kernel_(pivoting_kernel()) {}

  // Solves n queries, as many as the kernel has lanes at most.
  void solve(const T* queries, int64_t stride, int64_t n) {
    const int64_t rows = pool_.rows(), lanes = kernel_.lanes, width = pool_.width();
    double* values = values_.reserve(n * width);
    double* products = products_.reserve((rows + 2) * lanes + rows);
    double *shifts = products + rows * lanes, *scales = shifts + lanes, *out = scales + lanes;
    std::fill_n(products, (rows + 2) * lanes, 0.0);
    squares_.assign(size_t(n), 0);
    for (int64_t l = 0; l < n; ++l) {
      double* query = values + l * width;
      pool_.shifted(queries + l * stride, query);
      squares_[size_t(l)] = dot(query, query, width);
      dot_kernels<double>().few(pool_.values(), rows, query, width, out);
      for (int64_t k = 0; k < rows; ++k) products[k * lanes + l] = out[k];
    }
    for (int64_t l = 0; l < n; ++l) {
      const double square = squares_[size_t(l)];
      double farthest = 0;
      for (int64_t k = 0; k < rows; ++k)
        farthest = std::max(farthest, pool_.gram()[k * rows + k] - 2 * products[k * lanes + l]);
      scales[l] = kSimplex ? square + farthest : std::sqrt(square * pool_.longest());
      shifts[l] = square + scales[l];
    }
    double* work = work_.reserve(kernel_.work(rows));
    const PivotingProblem problem{pool_.gram(), rows, products, kSimplex ? shifts : nullptr,
                                  scales};
    kernel_.solve(problem, work, solution_.reserve(rows * lanes), rounds_.reserve(lanes));
  }

  // The answer for the query in a lane; false where another solver has to find it.
  bool answer(int64_t lane, SelectionAnswer& answer) {
    const int64_t rows = pool_.rows(), width = pool_.width();
    answer.num_iter = int64_t(rounds_.get()[lane]);
    if (answer.num_iter == 0) return false;
    answer.indices.clear(), answer.weights.clear(), support_.clear(), factors_.clear();
    double sum = 0, terms = 0;
    for (int64_t k = 0; k < rows; ++k) {
      const double a = solution_.get()[k * kernel_.lanes + lane];
      if (!(a > 0)) continue;
      answer.indices.push_back(k), answer.weights.push_back(a);
      sum += a;
    }
    for (size_t i = 0; i < answer.indices.size(); ++i) {
      const int64_t k = answer.indices[i];
      if (kSimplex) answer.weights[i] /= sum;
      terms += answer.weights[i] * std::sqrt(pool_.gram()[k * rows + k]);
      support_.push_back(pool_.values()[k]), factors_.push_back(-answer.weights[i]);
    }
    answer.support_size = int64_t(answer.indices.size());
    if (kSimplex && answer.support_size == 0) return false;
    const double* query = values_.get() + lane * width;
    double* residual = residual_.reserve(width);
    pool_.combine(query, support_.data(), factors_.data(), answer.support_size, residual);
    answer.residual = std::sqrt(dot(residual, residual, width));
    answer.gap = gap(residual, answer);
    const double size = std::sqrt(pool_.longest()) * (std::sqrt(squares_[size_t(lane)]) + terms);
    return is_stationary<double>(answer.gap, size, 0.0);
  }

 private:
  static constexpr bool kSimplex = kConstraint == Constraint::kSimplex;

  // As CorrectiveSolver has it, from the rows.
  double gap(const double* residual, const SelectionAnswer& answer) {
    double* slopes = products_.get();  // the products are not needed any more
    dot_kernels<double>().few(pool_.values(), pool_.rows(), residual, pool_.width(), slopes);
    double largest = *std::max_element(slopes, slopes + pool_.rows()), mean = 0;
    for (size_t i = 0; i < answer.indices.size(); ++i) {
      const double slope = slopes[answer.indices[i]];
      mean += answer.weights[i] * slope;
      if (!kSimplex) largest = std::max(largest, std::fabs(slope));
    }
    return kSimplex ? largest - mean : largest;
  }

  const PivotedPool<T, kConstraint>& pool_;
  const PivotingKernel& kernel_;
  AlignedDoubles values_, products_, work_, solution_, rounds_, residual_;
  std::vector<double> squares_, factors_;
  std::vector<const double*> support_;
};

}  // namespace hullft
