// The correlation of every candidate with the residual, in float64 throughout.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "../../core/frank_wolfe.h"
#include "../gram_columns.h"
#include "../query_pool.h"
#include "../simd/step_kernels.h"
#include "support.h"

namespace hullft {

// c = b - u with b = X q and u = G w. Atoms are the candidates, by their index.
template <typename T>
class ExactCorrelations {
 public:
  // The state at w = 0, or false when an inner product is not finite. `support` is the solver's.
  bool begin(const QueryPool<T>& in, int64_t n_select, Support& support) {
    const int64_t n_rows = in.n_rows;
    support_ = &support;
    support.begin(n_rows);
    n_ = padded(n_rows);
    columns_.begin(in.rows, n_rows, in.d, n_select + 1, in.share_rows);
    double* b = b_.reserve(n_);
    columns_.multiply(in.query, b);
    // A row that is not finite makes its correlation so, whatever the query: no pass of its own.
    double poison = 0;
    for (int64_t k = 0; k < n_rows; ++k) poison += b[k] * 0;
    if (std::isnan(poison)) return false;
    std::fill(b + n_rows, b + n_, -std::numeric_limits<double>::infinity());
    std::fill_n(u_.reserve(n_), n_, 0.0);
    best_ = step_kernels().step_argmax(b, u_.get(), n_, 1, 0, nullptr);
    return true;
  }

  // The largest correlation in the pool, the lowest candidate on ties.
  const ArgMax& best() const { return best_; }

  int64_t candidate(int64_t atom) const { return atom; }
  double b(int64_t atom) const { return b_.get()[atom]; }
  double u(int64_t atom) const { return u_.get()[atom]; }

  // G[i, j]; i is an atom of the support, or the best or the last that one was asked for.
  double gram(int64_t i, int64_t j) { return column(i)[j]; }
  static constexpr bool is_full() { return false; }

  // Follows a step of the support toward s.
  void follow(const Step<double>& step, int64_t s) {
    best_ = step_kernels().step_argmax(b_.get(), u_.get(), n_, step.scale, step.toward,
                                       step.toward > 0 ? column(s) : nullptr);
  }

  void settle(double) {}

  // A product that overflowed stays in u, where no argmax may see it.
  bool all_finite() const {
    double poison = 0;
    for (int64_t k = 0; k < n_; ++k) poison += u_.get()[k] * 0;
    return poison == 0;
  }

 private:
  const double* column(int64_t atom) {
    return columns_.get(atom, [this](int64_t k) { return support_->has(k); });
  }

  const Support* support_ = nullptr;
  GramColumns<T> columns_;
  AlignedDoubles b_, u_;
  int64_t n_ = 0;
  ArgMax best_{0, 0};
};

}  // namespace hullft
