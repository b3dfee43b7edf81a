// What fully corrective Frank-Wolfe knows of a query's residual where it has the rows' inner
// products alone: the same as ResidualCorrelations, on vectors of one value a row.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../../core/corrective.h"
#include "../aligned.h"
#include "../simd/corrective_kernels.h"
#include "../simd/dot_kernels.h"
#include "support.h"
#include "support_factor.h"

namespace hullft {

// Products of some rows, in float64.
struct GramProblem {
  const double* gram;       // [n_rows, stride], symmetric; 0 in the padding
  int64_t n_rows, stride;   // stride = padded(n_rows)
  const double* products;   // [n_rows] with the query
  double square;            // of the query
  double rounding;          // of the products, relative
  double query_square = 0;  // where a tolerance asks for it
  int64_t first = -1;       // the row that begins; without one, the row nearest to the query
};

// On the simplex the factor belongs to the rows less the first row of the support. It does not need
// the query's square: with the rows less the query, a square that does not fit the products would
// make the matrix indefinite.
template <Constraint kConstraint>
class GramCorrelations {
 public:
  static constexpr bool kSimplex = kConstraint == Constraint::kSimplex;
  static constexpr int kTargets = kSimplex ? 2 : 1;  // the products with the query, and 1

  // The state at w = 0, or false when a square or a product is not finite.
  bool begin(const GramProblem& in, const Support& support) {
    in_ = &in, support_ = &support;
    wb_ = wu_ = terms_ = shift_ = 0, origin_ = 0;
    std::fill_n(u_.reserve(in.stride), in.stride, 0.0);
    norms_.resize(size_t(in.n_rows));
    double poison = 0, nearest = 0;
    for (int64_t k = 0; k < in.n_rows; ++k) {
      norms_[size_t(k)] = std::sqrt(std::max(gram(k, k), 0.0));
      poison += norms_[size_t(k)] * 0 + in.products[k] * 0;
      const double nearness = 2 * in.products[k] - gram(k, k);
      if (k == 0 || nearness > nearest) nearest = nearness, origin_ = k;
    }
    if (!(poison == 0)) return false;
    if (in.first >= 0) origin_ = in.first;
    look();
    if (kSimplex) entering_ = {origin_, 0, false};
    return true;
  }

  void enter_strictly() {}

  void weigh() {
    columns_.clear(), wb_ = wu_ = terms_ = 0;
    const std::vector<double>& weights = support_->weights();
    for (const int64_t k : support_->atoms()) columns_.push_back(in_->gram + k * in_->stride);
    corrective_kernels().combine(nullptr, columns_.data(), weights.data(), support_->size(),
                                 in_->stride, u_.get());
    for (size_t i = 0; i < weights.size(); ++i) {
      const int64_t k = support_->atoms()[i];
      wb_ += weights[i] * in_->products[k];
      wu_ += weights[i] * u_.get()[k];
      terms_ += weights[i] * norms_[size_t(k)];
    }
  }

  void look() {
    entering_ = {-1, 0, true};
    for (int64_t k = 0; k < in_->n_rows; ++k)
      if (!support_->has(k) && (entering_.row < 0 || slope_of(k) > entering_.slope))
        entering_ = {k, slope_of(k), false};
    if (entering_.row < 0) return;
    const double size = std::fabs(in_->products[entering_.row]) + std::fabs(wb_) +
                        (norms_[size_t(entering_.row)] + (kSimplex ? length() : 0)) * terms_;
    entering_.is_optimal = is_stationary<double>(entering_.slope, size, 0.0);
  }
  void look_at_all() { look(); }
  bool choose_another() const { return false; }

  const Entering& entering() const { return entering_; }
  int64_t size() const { return support_->size(); }
  double slope(int64_t place, double /*length*/) const {
    return slope_of(support_->atoms()[size_t(place)]);
  }

  double query_square() const { return in_->query_square; }
  double squared_residual() const { return in_->square - 2 * wb_ + wu_; }
  double residual() const { return std::sqrt(std::max(squared_residual(), 0.0)); }
  // The rounding of the factor's entries. Products may be larger than these.
  double rounding() const {
    return kSimplex ? in_->rounding * (1 + gram(origin_, origin_) / shift_) : in_->rounding;
  }

  // t of core/corrective.h: the distance of the next row from the first, or of the farthest one.
  void choose_shift(bool is_long) {
    double most = 0;
    for (int64_t k = 0; k < in_->n_rows; ++k) {
      const double value = is_long ? entry(k, k) : products_from(k);
      if (value > most) most = value, shift_ = entry(k, k);
    }
    shift_ = factor_shift(shift_, gram(origin_, origin_));
    if (!(shift_ > 0)) shift_ = 1;  // all rows are 0
  }

  void entries(double* out) const {
    for (const int64_t i : support_->atoms()) *out++ = entry(i, entering_.row) + shift_;
  }
  double square() const { return entry(entering_.row, entering_.row) + shift_; }
  std::array<double, kTargets> targets() const {
    std::array<double, kTargets> targets{products_from(entering_.row)};
    if (kSimplex) targets.back() = 1;
    return targets;
  }

  // The factors of the targets that make the weights sum to 1.
  std::array<double, kTargets> shares(const SupportFactor<kTargets>& factor) const {
    std::array<double, kTargets> shares{1};
    if constexpr (kSimplex) shares[1] = (1 - factor.product(0, 1)) / factor.product(1, 1);
    return shares;
  }

  void join() {}
  void leave(int64_t /*place*/) {}

 private:
  double gram(int64_t i, int64_t j) const { return in_->gram[i * in_->stride + j]; }

  // <x_i - x_o, x_j - x_o> with the first row x_o on the simplex.
  double entry(int64_t i, int64_t j) const {
    if (!kSimplex) return gram(i, j);
    return (gram(i, j) - gram(i, origin_)) - (gram(j, origin_) - gram(origin_, origin_));
  }

  // <x_k - x_o, q - x_o>
  double products_from(int64_t k) const {
    if (!kSimplex) return in_->products[k];
    return (in_->products[k] - in_->products[origin_]) -
           (gram(k, origin_) - gram(origin_, origin_));
  }

  double slope_of(int64_t k) const {
    const double slope = in_->products[k] - u_.get()[k];
    return kSimplex ? slope - (wb_ - wu_) : slope;
  }

  double length() const { return std::sqrt(std::max(wu_, 0.0)); }  // of the combination

  const GramProblem* in_ = nullptr;
  const Support* support_ = nullptr;
  int64_t origin_ = 0;
  double shift_ = 0;
  double wb_ = 0, wu_ = 0, terms_ = 0;  // <w, products>, <w, u>, <w, norms>
  Entering entering_{0, 0, false};
  std::vector<double> norms_;
  AlignedDoubles u_;  // G w
  std::vector<const double*> columns_;
};

}  // namespace hullft
