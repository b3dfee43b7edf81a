// Frank-Wolfe selection of one query on the host: the schedule of core/frank_wolfe.h, float64
// state.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "../../core/frank_wolfe.h"
#include "../../host/fw_options.h"
#include "../integerizer.h"
#include "../residual.h"
#include "../selection_answer.h"
#include "support_order.h"

namespace hullft {

// Correlations is ExactCorrelations or ScreenedCorrelations of the pool's type.
template <typename T, typename Correlations>
class FwSolver {
 public:
  // False when an input or a product is not finite, or the correlations cannot follow any longer.
  bool solve(const FwOptions& options, const QueryPool<T>& in, SelectionAnswer& answer) {
    options_ = options;
    if (!start(in)) return false;
    int64_t iterations = 0;
    while (iterations < options_.max_iter && !converged(in)) {
      const Step<double> step = choose_step();
      if (!std::isfinite(step.toward)) return false;
      if (!step.moves) break;
      apply(step);
      ++iterations;
      if (correlations_.is_full()) return false;
      if (support_.size() >= options_.max_support) break;
    }
    if (!std::isfinite(iterate_.wu) || !correlations_.all_finite()) return false;
    answer.num_iter = iterations;
    finish(in, answer);
    return true;
  }

 private:
  bool start(const QueryPool<T>& in) {
    // Same summation order as row products, so a query in its pool has distance exactly 0.
    dot_kernels<T>().few(&in.query, 1, in.query, in.d, &qq_);
    if (!std::isfinite(qq_)) return false;
    if (!correlations_.begin(in, options_.max_support, support_)) return false;
    s_ = correlations_.best().index;
    support_.keep_only(s_);
    Step<double> whole;
    whole.scale = 0, whole.toward = 1;
    correlations_.follow(whole, s_);
    largest_square_ = std::max(qq_, correlations_.gram(s_, s_));
    refresh_iterate();
    return true;
  }

  void refresh_iterate() {
    iterate_ = products_of_support();
    residual_ = std::sqrt(squared_residual(iterate_, qq_));
    correlations_.settle(residual_);
  }

  // Two accumulators of each sum break the dependency chain.
  Iterate<double> products_of_support() const {
    const std::vector<int64_t>& atoms = support_.atoms();
    const std::vector<double>& weights = support_.weights();
    Iterate<double> even{0, 0}, odd{0, 0};
    const auto add = [&](size_t j, Iterate<double>& sum) {
      sum.wb += weights[j] * correlations_.b(atoms[j]);
      sum.wu += weights[j] * correlations_.u(atoms[j]);
    };
    size_t j = 0;
    for (; j + 2 <= atoms.size(); j += 2) add(j, even), add(j + 1, odd);
    if (j < atoms.size()) add(j, even);
    return {even.wb + odd.wb, even.wu + odd.wu};
  }

  double gap() const { return correlations_.best().value - mean_correlation(iterate_); }

  bool converged(const QueryPool<T>& in) {
    if (is_within_tol(in)) return true;
    return options_.gap_tol > 0 && gap() <= options_.gap_tol;
  }

  // Below the rounding error of inner products the square is noise.
  bool is_within_tol(const QueryPool<T>& in) {
    if (options_.tol == 0) return false;
    const double noise = 32 * std::numeric_limits<double>::epsilon() * largest_square_;
    const double tol = options_.tol * std::sqrt(qq_);
    if (squared_residual(iterate_, qq_) > tol * tol + noise) return false;
    return residual_of_rows(in) < tol;
  }

  int64_t candidate(int64_t atom) const { return correlations_.candidate(atom); }

  Atom<double> atom(int64_t k) {
    return {correlations_.b(k) - correlations_.u(k), correlations_.u(k), correlations_.gram(k, k)};
  }

  Step<double> choose_step() {
    s_ = correlations_.best().index;
    return toward_step(atom(s_), iterate_);
  }

  void apply(const Step<double>& step) {
    support_.scale(step.scale);
    support_.add(s_, step.toward);
    largest_square_ = std::max(largest_square_, correlations_.gram(s_, s_));
    correlations_.follow(step, s_);
    refresh_iterate();
  }

  void finish(const QueryPool<T>& in, SelectionAnswer& answer) {
    const bool cancelled = squared_residual(iterate_, qq_) < kCancelled * largest_square_;
    answer.residual = cancelled ? residual_of_rows(in) : residual_;
    answer.gap = gap();
    order_.write(support_, options_.max_support, answer,
                 [this](int64_t atom) { return candidate(atom); });
    count(answer);
  }

  double residual_of_rows(const QueryPool<T>& in) {
    double* values = widened_query_.reserve(padded(in.d));
    dot_kernels<T>().widen(in.query, in.d, values);
    return residual_norm(values, in.d, support_.weights(),
                         [&](size_t j) { return in.rows[candidate(support_.atoms()[j])]; });
  }

  void count(SelectionAnswer& answer) {
    const int64_t m = answer.support_size;
    double* gram = gram_.reserve(m * m);
    double* b = support_b_.reserve(m);
    for (int64_t i = 0; i < m; ++i) {
      const int64_t atom = support_.atoms()[order_.places()[size_t(i)]];
      b[i] = correlations_.b(atom);
      for (int64_t j = 0; j < m; ++j)
        gram[i * m + j] = correlations_.gram(atom, support_.atoms()[order_.places()[size_t(j)]]);
    }
    answer.counts.assign(size_t(m), 0);
    integerizer_.run(gram, b, answer.weights.data(), m, options_.n_select, options_.swap_passes,
                     answer.counts.data());
  }

  FwOptions options_{};
  Correlations correlations_;
  Support support_;
  AlignedDoubles gram_, support_b_, widened_query_;
  double qq_ = 0, residual_ = 0;
  double largest_square_ = 0;  // of the query, and of the rows that were ever in the support
  Iterate<double> iterate_{0, 0};
  int64_t s_ = 0;
  SupportOrder order_;
  Integerizer integerizer_;
};

}  // namespace hullft
