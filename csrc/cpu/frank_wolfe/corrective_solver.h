// Fully corrective Frank-Wolfe of one query on the host: the schedule of core/corrective.h, float64
// state. Without the sum it is non-negative least squares.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../../core/corrective.h"
#include "../selection_answer.h"
#include "support.h"
#include "support_factor.h"
#include "support_order.h"

namespace hullft {

struct CorrectiveOptions {
  int64_t max_iter;
  double tol, gap_tol;
  int64_t max_support;
};

// `Correlations` know the rows: ResidualCorrelations have them, GramCorrelations their products.
template <typename Correlations>
class CorrectiveSolver {
 public:
  // False when an input or a product is not finite. `source` is what the correlations begin with.
  // The answer has no counts.
  template <typename Source>
  bool solve(const CorrectiveOptions& options, const Source& source, SelectionAnswer& answer) {
    options_ = options;
    // Where the support fills, which rows it has depends on their order: then they are
    // ordered by their correlations in the whole pool.
    const bool is_likely_to_fill = options.max_support < kFewRows;
    if (!run(source, is_likely_to_fill, kShortShift, answer)) return false;
    if (is_stuck(answer)) {
      const double gap = answer.gap;
      run(source, is_likely_to_fill, kLongShift, answer);
      if (answer.gap > gap) run(source, is_likely_to_fill, kShortShift, answer);
    }
    if (is_full() && !is_likely_to_fill) run(source, true, kShortShift, answer);
    answer.residual = correlations_.residual();
    order_.write(support_, options.max_support, answer);
    return std::isfinite(answer.gap) && std::isfinite(answer.residual);
  }

  const Correlations& correlations() const { return correlations_; }

 private:
  static constexpr bool kSimplex = Correlations::kSimplex;
  static constexpr int64_t kFewRows = 16;
  static constexpr bool kShortShift = false, kLongShift = true;
  using Factor = SupportFactor<Correlations::kTargets>;

  // From the start to the optimum, or what ends it before. False when a value is not finite.
  template <typename Source>
  bool run(const Source& source, bool enters_strictly, bool shift, SelectionAnswer& answer) {
    support_.begin(source.n_rows);
    if (!correlations_.begin(source, support_)) return false;
    if (enters_strictly) correlations_.enter_strictly();
    enters_alone_ = false;
    if (kSimplex) correlations_.choose_shift(shift);
    factor_.begin(correlations_.rounding());
    bool goes_on = start();
    answer.num_iter = 0;
    while (goes_on && answer.num_iter < options_.max_iter && !converged()) {
      if (!enter()) break;
      ++answer.num_iter;
      goes_on = correct();
      correlations_.weigh();
      correlations_.look();
    }
    correlations_.look_at_all();
    answer.gap = kkt_violation();
    return true;
  }

  // Whether a row has a slope and could not enter: beside a short t, rows that lie nearly on a line
  // are on it to rounding.
  bool is_stuck(const SelectionAnswer& answer) {
    return kSimplex && answer.num_iter < options_.max_iter && !converged();
  }

  bool is_full() const { return support_.size() >= options_.max_support; }

  // On the simplex the first row has all of the weight; without the sum the support starts empty.
  // False when the first row is the query, and both are 0.
  bool start() {
    if (!kSimplex) return true;
    const int64_t first = correlations_.entering().row;
    const bool goes_on = join(0);
    support_.keep_only(first);
    correlations_.weigh();
    correlations_.look_at_all();
    return goes_on;
  }

  bool converged() {
    if (correlations_.entering().is_optimal || is_full()) return true;
    if (options_.gap_tol > 0 && kkt_violation() <= options_.gap_tol) {
      correlations_.look_at_all();
      if (kkt_violation() <= options_.gap_tol) return true;
    }
    return options_.tol > 0 &&
           correlations_.residual() < options_.tol * std::sqrt(correlations_.query_square());
  }

  // The Frank-Wolfe gap on the simplex. Without the sum, the largest violation of the conditions of
  // an optimum: no correlation is above 0, and the support's are 0.
  double kkt_violation() {
    const double length = correlations_.residual();
    double largest = correlations_.entering().slope;
    for (int64_t i = 0; i < correlations_.size(); ++i) {
      const double slope = correlations_.slope(i, length);
      largest = std::max(largest, kSimplex ? slope : std::fabs(slope));
    }
    return largest;
  }

  // The next row enters the support, and into a large support a block of rows. False when the first
  // has no length.
  bool enter() {
    if (!join(0)) return false;
    n_entered_ = 1;
    const int64_t block = enters_alone_ ? 1 : support_.size() / kRowsOfBlock;
    while (n_entered_ < block && !is_full() && correlations_.choose_another() &&
           join(kLeastShareInBlock))
      ++n_entered_;
    return true;
  }

  // The row that was chosen enters with no weight.
  bool join(double least_share) {
    entries_.resize(size_t(support_.size()));
    correlations_.entries(entries_.data());
    if (!factor_.join(entries_.data(), correlations_.square(), correlations_.targets(),
                      least_share))
      return false;
    correlations_.join();
    support_.add(correlations_.entering().row, 0);
    return true;
  }

  // Minor cycles: moves the weights to the best for the support, whose rows leave where that would
  // take more than their weight. False when all rows leave that entered, which is no progress.
  bool correct() {
    const bool is_block = n_entered_ > 1;
    while (n_entered_ > 0) {
      solve_support();
      const auto positive = [](double a) { return a > 0; };
      if (std::all_of(solution_.begin(), solution_.end(), positive)) {
        support_.assign(solution_);
        return true;
      }
      if (!refuse_entered()) step_toward_solution();
    }
    // The best row of a block makes progress alone.
    enters_alone_ = is_block;
    return is_block;
  }

  // The best weights for the support, were they free to be negative.
  void solve_support() {
    solution_.resize(size_t(support_.size()));
    factor_.solve(correlations_.shares(factor_), solution_.data());
  }

  // Rows of a block that would get no weight leave before the others move. Returns whether any did.
  bool refuse_entered() {
    const int64_t before = n_entered_;
    for (int64_t i = support_.size(); i-- > 0;)
      if (support_.weights()[size_t(i)] == 0 && !(solution_[size_t(i)] > 0)) leave(i);
    return n_entered_ < before;
  }

  void step_toward_solution() {
    const std::vector<double>& weights = support_.weights();
    double share = 2;
    size_t leaving = 0;
    for (size_t i = 0; i < solution_.size(); ++i) {
      if (solution_[i] > 0) continue;
      const double until_zero = share_until_zero(weights[i], solution_[i]);
      const bool lower = support_.atoms()[i] < support_.atoms()[leaving];
      if (until_zero < share || (until_zero == share && lower)) share = until_zero, leaving = i;
    }
    for (size_t i = 0; i < solution_.size(); ++i)
      solution_[i] = weights[i] + share * (solution_[i] - weights[i]);
    solution_[leaving] = 0;
    support_.assign(solution_);
    for (size_t i = solution_.size(); i-- > 0;)
      if (!(solution_[i] > 0)) leave(int64_t(i));
  }

  // The rows that entered last are the last of the support.
  void leave(int64_t place) {
    n_entered_ -= place >= support_.size() - n_entered_;
    factor_.leave(place);
    correlations_.leave(place);
    support_.leave(place);
  }

  // A support of this many rows takes one more in a block. Smaller ones are not far from their
  // final size. Xeon (AVX-512), 500 x 600, support of 417: 0.6 of the time of one row a cycle.
  static constexpr int64_t kRowsOfBlock = 16;
  // A row of a block that depends on the support is left for later.
  static constexpr double kLeastShareInBlock = 1e-6;

  CorrectiveOptions options_{};
  Correlations correlations_;
  Support support_;  // in the order of the factor
  Factor factor_;
  SupportOrder order_;
  int64_t n_entered_ = 0;      // rows of the last block that are still in the support
  bool enters_alone_ = false;  // since a block made no progress
  std::vector<double> entries_, solution_;
};

}  // namespace hullft
