// Frank-Wolfe selection of one query on the host: the schedule of core/frank_wolfe.h, float64
// state.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "../core/frank_wolfe.h"
#include "../selection_arguments.h"
#include "gram_columns.h"
#include "integerizer.h"

namespace hullft {

// One query's answer; the arrays hold n_select values, of which support_size are set.
struct FwAnswer {
  std::vector<int64_t> indices, counts;
  std::vector<double> weights;
  int64_t support_size = 0, num_iter = 0;
  double residual = 0, gap = 0;
};

template <typename T>
class FwSolver {
 public:
  explicit FwSolver(const FwOptions& options) : options_(options) {}

  // rows [n_rows] point at d values each. False when an input or a product is not finite.
  bool solve(const T* const* rows, int64_t n_rows, const T* query, int64_t d, bool share_rows,
             FwAnswer& answer) {
    if (!start(rows, n_rows, query, d, share_rows)) return false;
    int64_t iterations = 0;
    while (iterations < options_.max_iter && !converged()) {
      const Step<double> step = choose_step();
      if (!std::isfinite(step.toward) || !std::isfinite(step.away)) return false;
      if (!step.moves) break;
      apply(step);
      ++iterations;
      if (options_.variant == Variant::kVanilla && support_size() >= options_.n_select) break;
    }
    if (!std::isfinite(iterate_.wu)) return false;
    answer.num_iter = iterations;
    finish(answer);
    return true;
  }

 private:
  static constexpr int32_t kOutside = -1;

  int64_t support_size() const { return int64_t(atoms_.size()); }

  bool start(const T* const* rows, int64_t n_rows, const T* query, int64_t d, bool share_rows) {
    n_padded_ = padded(n_rows);
    columns_.begin(rows, n_rows, d, options_.n_select + 1, share_rows);
    double* b = b_.reserve(n_padded_);
    double* u = u_.reserve(n_padded_);
    columns_.multiply(query, b);
    qq_ = 0;
    for (int64_t i = 0; i < d; ++i) qq_ += widen(query[i]) * widen(query[i]);
    // A row that is not finite makes its correlation so, whatever the query: no pass of its own.
    double poison = qq_ * 0;
    for (int64_t k = 0; k < n_rows; ++k) poison += b[k] * 0;
    if (poison != 0 || std::isnan(poison)) return false;
    std::fill(b + n_rows, b + n_padded_, -std::numeric_limits<double>::infinity());
    std::fill(u, u + n_padded_, 0.0);
    best_ = kernels().step_argmax(b, u, n_padded_, 1, 0, nullptr, 0, nullptr);

    position_.assign(size_t(n_rows), kOutside);
    atoms_.clear(), weights_.clear();
    enter(best_.index);
    weights_[0] = 1;
    best_ = kernels().step_argmax(b, u, n_padded_, 0, 1, column(atoms_[0]), 0, nullptr);
    refresh_iterate();
    return true;
  }

  const double* column(int64_t atom) {
    return columns_.get(atom, [this](int64_t a) { return position_[size_t(a)] != kOutside; });
  }

  void refresh_iterate() {
    iterate_ = {0, 0};
    for (size_t j = 0; j < atoms_.size(); ++j) {
      iterate_.wb += weights_[j] * b_.get()[atoms_[j]];
      iterate_.wu += weights_[j] * u_.get()[atoms_[j]];
    }
  }

  double gap() const { return best_.value - mean_correlation(iterate_); }

  bool converged() const {
    if (std::sqrt(squared_residual(iterate_, qq_)) < options_.tol) return true;
    return options_.gap_tol > 0 && gap() <= options_.gap_tol;
  }

  double correlation(int64_t atom) const { return b_.get()[atom] - u_.get()[atom]; }

  Atom<double> atom(int64_t k, const double* column_k) const {
    const int32_t j = position_[size_t(k)];
    return {correlation(k), u_.get()[k], column_k[k], j == kOutside ? 0.0 : weights_[size_t(j)]};
  }

  // The support's atom of largest (or smallest) correlation, the lowest index on ties.
  template <typename Better>
  int64_t extreme_of_support(const Better& better) const {
    int64_t found = atoms_[0];
    double value = correlation(found);
    for (const int64_t k : atoms_) {
      const double c = correlation(k);
      if (better(c, value) || (c == value && k < found)) found = k, value = c;
    }
    return found;
  }

  // Picks s_ and, in the variants that take weight back, a_; a step toward s_ alone leaves a_
  // unused.
  Step<double> choose_step() {
    s_ = best_.index;
    if (options_.variant == Variant::kVanilla) return toward_step(atom(s_, column(s_)), iterate_);
    if (support_size() >= options_.n_select) s_ = extreme_of_support(std::greater<double>());
    a_ = extreme_of_support(std::less<double>());
    const Atom<double> a = atom(a_, column(a_));
    if (options_.variant == Variant::kPairwise) {
      const double* column_s = column(s_);
      return pairwise_step(atom(s_, column_s), a, column_s[a_]);
    }
    if (prefers_away(correlation(s_), a.c, iterate_)) return away_step(a, iterate_);
    const Step<double> step = toward_step(atom(s_, column(s_)), iterate_);
    return step.toward > 0 ? step : Step<double>{};
  }

  void apply(const Step<double>& step) {
    const bool toward = step.toward > 0 || options_.variant == Variant::kVanilla;
    const bool away = step.away > 0;
    if (toward && position_[size_t(s_)] == kOutside) enter(s_);
    for (double& w : weights_) w *= step.scale;
    if (toward) weights_[size_t(position_[size_t(s_)])] += step.toward;
    if (away) weights_[size_t(position_[size_t(a_)])] -= step.away;
    best_ = kernels().step_argmax(b_.get(), u_.get(), n_padded_, step.scale, step.toward,
                                  toward ? column(s_) : nullptr, step.away,
                                  away ? column(a_) : nullptr);
    if (step.drops) leave(a_);
    if (step.scale == 0 && options_.variant != Variant::kVanilla) keep_only(s_);
    refresh_iterate();
  }

  void enter(int64_t atom) {
    position_[size_t(atom)] = int32_t(atoms_.size());
    atoms_.push_back(atom);
    weights_.push_back(0.0);
  }

  void leave(int64_t atom) {
    const size_t hole = size_t(position_[size_t(atom)]);
    position_[size_t(atom)] = kOutside;
    atoms_[hole] = atoms_.back(), weights_[hole] = weights_.back();
    if (atoms_[hole] != atom) position_[size_t(atoms_[hole])] = int32_t(hole);
    atoms_.pop_back(), weights_.pop_back();
  }

  void keep_only(int64_t atom) {
    for (const int64_t k : atoms_) position_[size_t(k)] = kOutside;
    atoms_.clear(), weights_.clear();
    enter(atom);
    weights_[0] = 1;
  }

  void finish(FwAnswer& answer) {
    answer.residual = std::sqrt(squared_residual(iterate_, qq_));
    answer.gap = gap();
    order_.resize(atoms_.size());
    std::iota(order_.begin(), order_.end(), size_t(0));
    std::sort(order_.begin(), order_.end(), [this](size_t i, size_t j) {
      return weights_[i] != weights_[j] ? weights_[i] > weights_[j] : atoms_[i] < atoms_[j];
    });
    const int64_t m = std::min(support_size(), options_.n_select);
    answer.support_size = m;
    answer.indices.assign(size_t(m), 0);
    answer.weights.assign(size_t(m), 0.0);
    answer.counts.assign(size_t(m), 0);
    for (int64_t i = 0; i < m; ++i) {
      answer.indices[size_t(i)] = atoms_[order_[size_t(i)]];
      answer.weights[size_t(i)] = weights_[order_[size_t(i)]];
    }
    count(answer);
  }

  void count(FwAnswer& answer) {
    const int64_t m = answer.support_size;
    double* gram = gram_.reserve(m * m);
    double* b = support_b_.reserve(m);
    for (int64_t i = 0; i < m; ++i) {
      const double* column_i = column(answer.indices[size_t(i)]);
      b[i] = b_.get()[answer.indices[size_t(i)]];
      for (int64_t j = 0; j < m; ++j) gram[i * m + j] = column_i[answer.indices[size_t(j)]];
    }
    integerizer_.run(gram, b, answer.weights.data(), m, options_.n_select, options_.swap_passes,
                     answer.counts.data());
  }

  FwOptions options_;
  GramColumns<T> columns_;
  AlignedDoubles b_, u_, gram_, support_b_;
  int64_t n_padded_ = 0;
  double qq_ = 0;
  Iterate<double> iterate_{0, 0};
  ArgMax best_{0, 0};
  int64_t s_ = 0, a_ = 0;
  std::vector<int64_t> atoms_;     // the support, in no order of note
  std::vector<double> weights_;    // of atoms_
  std::vector<int32_t> position_;  // of each candidate in atoms_
  std::vector<size_t> order_;
  Integerizer integerizer_;
};

}  // namespace hullft
