// What fully corrective Frank-Wolfe knows of a query's residual: which row enters next, and the
// support's rows that it is made of.
//
// Most cycles look at no more than a working set, the rows of the largest correlations of the last
// pass over the pool, for as long as its best row is good enough. The solve ends with a pass over
// all rows, so that the optimum is the whole pool's; only the entry order differs. On text 15 of 19
// cycles need no pass.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../../core/corrective.h"
#include "../aligned.h"
#include "../query_pool.h"
#include "../simd/corrective_kernels.h"
#include "../simd/dot_kernels.h"
#include "../wide_vectors.h"
#include "largest_correlation.h"
#include "support.h"
#include "support_factor.h"

namespace hullft {

// The support's rows are kept less the query on the simplex, and as they are without the sum.
template <typename T, Constraint kConstraint>
class ResidualCorrelations {
 public:
  static constexpr bool kSimplex = kConstraint == Constraint::kSimplex;
  static constexpr int kTargets = 1;

  // The state at w = 0, or false when a value is not finite. `support` is the solver's.
  bool begin(const QueryPool<T>& in, const Support& support) {
    in_ = &in, support_ = &support;
    width_ = padded(in.d);
    dot_kernels<T>().widen(in.query, in.d, query_.reserve(width_));
    residual_.reserve(width_), entering_row_.reserve(width_);
    std::copy_n(query_.get(), width_, residual_.get());
    n_support_ = 0, shift_ = 0;
    qq_ = dot(query_.get(), query_.get(), width_);
    if (!std::isfinite(qq_) || !largest_.begin(in, support)) return false;
    looks_at_all_ = largest_.is_small();
    saw_all_ = false;
    look_at_all();
    return true;
  }

  // From now on every cycle enters the row of the largest correlation in the pool.
  void enter_strictly() { looks_at_all_ = true; }

  // After the weights of the support have changed.
  void weigh() {
    vectors_.clear(), factors_.clear();
    for (int64_t j = 0; j < n_support_; ++j) {
      vectors_.push_back(rows_[size_t(j)].get());
      factors_.push_back(-support_->weights()[size_t(j)]);
    }
    corrective_kernels().combine(kSimplex ? nullptr : query_.get(), vectors_.data(),
                                 factors_.data(), n_support_, width_, residual_.get());
    saw_all_ = false;
  }

  // Chooses the row that enters next.
  void look() {
    if (looks_at_all_ || !look_at_working_set()) look_at_all();
  }

  // The same among all rows of the pool.
  void look_at_all() {
    if (saw_all_) return;
    const double length = residual();
    set_entering(largest_.in_pool(residual_.get()), length);
    slope_of_first_ = entering_.slope;
    saw_all_ = true;
    slope_of_all_ = entering_.slope;
    if (looks_at_all_ || length == 0) return;
    // Other rows have no slope.
    const double mean = kSimplex ? dot(residual_.get(), query_.get(), width_) - length * length : 0;
    largest_.choose_working_set(mean / length);
  }

  const Entering& entering() const { return entering_; }

  // After `look`, and while rows have joined since: the next one of a block. False where none has a
  // slope near the first's.
  bool choose_another() {
    const double length = residual();
    const int64_t row = looks_at_all_ || length == 0 ? -1 : largest_.next_of_last_set();
    if (row < 0) return false;
    set_entering(row, length);
    return !entering_.is_optimal && entering_.slope >= kNearFirst * slope_of_first_;
  }

  double residual() const { return std::sqrt(dot(residual_.get(), residual_.get(), width_)); }
  double query_square() const { return qq_; }

  double rounding() const { return epsilon<double>(); }

  // How many rows have joined, and the slope of one by its place, given the residual's length.
  int64_t size() const { return n_support_; }
  double slope(int64_t place, double length) const {
    return slope_of(rows_[size_t(place)].get(), length);
  }

  // t of core/corrective.h, before the first row joins: of its distance from the query; of the
  // query's norm if that is less and t need not be long.
  void choose_shift(bool is_long) {
    const double shortest = is_long ? entering_square_ : std::min(qq_, entering_square_);
    shift_ = factor_shift(shortest, entering_square_);
  }

  // The entering row k: A_ik for the rows i of the support, A_kk, and its target.
  void entries(double* out) {
    vectors_.clear();
    for (int64_t j = 0; j < n_support_; ++j) vectors_.push_back(rows_[size_t(j)].get());
    dot_kernels<double>().few(vectors_.data(), n_support_, entering_row_.get(), width_, out);
    for (int64_t j = 0; j < n_support_; ++j) out[j] += shift_;
  }
  double square() const { return entering_square_ + shift_; }
  std::array<double, 1> targets() const {
    return {kSimplex ? shift_ : dot(entering_row_.get(), query_.get(), width_)};
  }

  // The factor of the target that makes the weights sum to 1.
  std::array<double, 1> shares(const SupportFactor<1>& factor) const {
    return {kSimplex ? shift_ / factor.product(0, 0) : 1.0};
  }

  // The row that enters becomes the last of the support.
  void join() {
    if (int64_t(rows_.size()) == n_support_) rows_.emplace_back(), lengths_.push_back(0);
    std::copy_n(entering_row_.get(), width_, rows_[size_t(n_support_)].reserve(width_));
    lengths_[size_t(n_support_)] = std::sqrt(entering_square_);
    ++n_support_;
  }

  void leave(int64_t place) {
    std::rotate(rows_.begin() + place, rows_.begin() + place + 1, rows_.begin() + n_support_);
    std::rotate(lengths_.begin() + place, lengths_.begin() + place + 1,
                lengths_.begin() + n_support_);
    --n_support_;
  }

 private:
  static constexpr double kNearFirst = 0.3;   // beside the slope of a block's first row
  static constexpr double kGoodEnough = 0.1;  // beside the best slope of the last pass

  // False when its best row is not good enough.
  bool look_at_working_set() {
    if (largest_.working_set_is_empty()) return false;
    const double length = residual();
    set_entering(largest_.in_working_set(residual_.get()), length);
    slope_of_first_ = entering_.slope;
    return !entering_.is_optimal && entering_.slope >= kGoodEnough * slope_of_all_;
  }

  void set_entering(int64_t row, double length) {
    entering_ = {row, 0, true};
    if (row < 0) return;  // all rows are in the support
    double* values = entering_row_.get();
    dot_kernels<T>().widen(in_->rows[row], in_->d, values);
    if (kSimplex) subtract(values, query_.get(), width_);
    const double slope = slope_of(values, length);
    // A slope is as inexact as the residual, whose terms are rows times their weights.
    double terms = kSimplex ? 0 : std::sqrt(qq_);
    for (int64_t j = 0; j < n_support_; ++j)
      terms += support_->weights()[size_t(j)] * lengths_[size_t(j)];
    entering_square_ = dot(values, values, width_);
    entering_ = {row, slope,
                 is_stationary<double>(slope, std::sqrt(entering_square_) * terms, 0.0)};
  }

  double slope_of(const double* row, double length) const {
    return dot(row, residual_.get(), width_) + (kSimplex ? length * length : 0);
  }

  const QueryPool<T>* in_ = nullptr;
  const Support* support_ = nullptr;
  LargestCorrelation<T> largest_;
  int64_t width_ = 0;  // d, padded with 0
  double qq_ = 0, shift_ = 0;
  Entering entering_{0, 0, false};
  double entering_square_ = 0;  // of the row, less the query on the simplex
  bool looks_at_all_ = true, saw_all_ = false;
  double slope_of_first_ = 0;
  double slope_of_all_ = 0;  // of the row that the last pass over the pool chose
  AlignedDoubles query_, residual_, entering_row_;
  // The support's rows in its order; behind them the memory of earlier ones.
  std::vector<AlignedDoubles> rows_;
  std::vector<double> lengths_;
  int64_t n_support_ = 0;
  // Scratch.
  std::vector<const double*> vectors_;
  std::vector<double> factors_;
};

}  // namespace hullft
