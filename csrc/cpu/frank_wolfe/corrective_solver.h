// Fully corrective Frank-Wolfe of one query on the host: the schedule of core/corrective.h, float64
// state. Without the sum it is non-negative least squares.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../../core/corrective.h"
#include "../selection_answer.h"
#include "residual_correlations.h"
#include "support_factor.h"
#include "support_order.h"

namespace hullft {

struct CorrectiveOptions {
  int64_t max_iter;
  double tol, gap_tol;
  int64_t max_support;
};

template <typename T, Constraint kConstraint>
class CorrectiveSolver {
 public:
  // False when an input or a product is not finite. `units` are those of a shared pool, or null.
  // The answer has no counts.
  bool solve(const CorrectiveOptions& options, const QueryPool<T>& in, const UnitPool<T>* units,
             SelectionAnswer& answer) {
    options_ = options;
    support_.begin(in.n_rows);
    if (!correlations_.begin(in, units, support_)) return false;
    // Where the support fills, which rows it has depends on their order: then it is that of their
    // correlations in the whole pool.
    const bool is_likely_to_fill = options.max_support < kFewRows;
    if (is_likely_to_fill) correlations_.enter_strictly();
    run(answer);
    if (is_full() && !is_likely_to_fill) {
      support_.begin(in.n_rows);
      correlations_.begin(in, units, support_);
      correlations_.enter_strictly();
      run(answer);
    }
    answer.residual = correlations_.residual();
    order_.write(support_, options.max_support, answer);
    return std::isfinite(answer.gap) && std::isfinite(answer.residual);
  }

 private:
  static constexpr bool kSimplex = kConstraint == Constraint::kSimplex;
  static constexpr int64_t kFewRows = 16;

  // Until the optimum, or what ends it before.
  void run(SelectionAnswer& answer) {
    factor_.begin();
    bool goes_on = start();
    answer.num_iter = 0;
    while (goes_on && answer.num_iter < options_.max_iter && !converged()) {
      if (!join()) break;
      ++answer.num_iter;
      goes_on = correct();
      correlations_.weigh();
      correlations_.look();
    }
    correlations_.look_at_all();
    answer.gap = violation();
  }

  bool is_full() const { return support_.size() >= options_.max_support; }

  // On the simplex the first row has all of the weight; without the sum the support starts empty.
  // False when the first row is the query, and both are 0.
  bool start() {
    if (!kSimplex) return true;
    const int64_t first = correlations_.entering().row;
    correlations_.choose_shift();
    const bool goes_on = join();
    support_.keep_only(first);
    correlations_.weigh();
    correlations_.look_at_all();
    return goes_on;
  }

  bool converged() {
    if (correlations_.entering().is_optimal || is_full()) return true;
    if (options_.gap_tol > 0 && violation() <= options_.gap_tol) {
      correlations_.look_at_all();
      if (violation() <= options_.gap_tol) return true;
    }
    return options_.tol > 0 &&
           correlations_.residual() < options_.tol * std::sqrt(correlations_.query_square());
  }

  // The Frank-Wolfe gap on the simplex. Without the sum, the largest violation of the conditions of
  // an optimum: no correlation is above 0, those of the support are 0.
  double violation() {
    const double length = correlations_.residual();
    double largest = correlations_.entering().slope;
    for (int64_t i = 0; i < correlations_.size(); ++i) {
      const double slope = correlations_.slope(i, length);
      largest = std::max(largest, kSimplex ? slope : std::fabs(slope));
    }
    return largest;
  }

  // The next row enters the support with no weight. False when it has no length.
  bool join() {
    entries_.resize(size_t(support_.size()));
    correlations_.entries(entries_.data());
    if (!factor_.join(entries_.data(), correlations_.square(), correlations_.target()))
      return false;
    correlations_.join();
    support_.add(correlations_.entering().row, 0);
    return true;
  }

  // Minor cycles: moves the weights to the best for the support, whose rows leave where that would
  // take more than their weight. False when the row that entered leaves, which is no progress.
  bool correct() {
    const int64_t entering = support_.atoms().back();
    while (support_.has(entering)) {
      solve_support();
      const auto positive = [](double a) { return a > 0; };
      if (std::all_of(solution_.begin(), solution_.end(), positive)) {
        support_.assign(solution_);
        return true;
      }
      step_toward_solution();
    }
    return false;
  }

  // The best weights for the support, were they free to be negative.
  void solve_support() {
    solution_.resize(size_t(support_.size()));
    factor_.solve(solution_.data());
    if (!kSimplex) return;
    const double scale = correlations_.shift() / factor_.y_square();
    for (double& a : solution_) a *= scale;
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

  void leave(int64_t place) {
    factor_.leave(place);
    correlations_.leave(place);
    support_.leave(place);
  }

  CorrectiveOptions options_{};
  ResidualCorrelations<T, kConstraint> correlations_;
  Support support_;  // in the order of the factor
  SupportFactor factor_;
  SupportOrder order_;
  std::vector<double> entries_, solution_;
};

}  // namespace hullft
