// Estimates of the correlations of all candidates with the residual, from a pool in 16-bit
// integers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>

#include "../../core/frank_wolfe.h"
#include "../column_cache.h"
#include "../query_pool.h"
#include "../simd/screening_kernels.h"
#include "quantized_pool.h"

namespace hullft {

template <typename T>
class Estimates {
 public:
  // The estimates at w = 0, or false when one is not finite, which says nothing of what it
  // estimates.
  bool begin(const QueryPool<T>& in, int64_t n_select) {
    kernels_ = &screening_kernels();
    n_ = padded(in.n_rows);
    float* b = b_.reserve(n_);
    if (!pool_.begin(in, b)) return false;
    std::fill(b + in.n_rows, b + n_, kLowest);
    std::fill_n(u_.reserve(n_), n_, 0.0f);
    columns_.begin(in.n_rows, n_select + 1);
    drift_ = 0;
    highest_ = kernels_->step_max(b, u_.get(), n_, 1, 0, nullptr);
    return true;
  }

  // How far an estimate may be from its correlation, given the norm of the residual.
  double error(double residual) const { return pool_.error(residual) + drift_; }
  // The same at w = 0.
  double error_at_zero() const { return error(pool_.query_norm()); }

  double highest() const { return highest_; }

  // The candidates of these estimates and higher ones, in order. Valid until the next call.
  std::span<const int64_t> at_least(float least) {
    int64_t* candidates = at_least_.reserve(n_);
    const int64_t n = kernels_->estimates_from(b_.get(), u_.get(), n_, least, candidates);
    return {candidates, size_t(n)};
  }

  // The candidate needs no estimate any more.
  void drop(int64_t candidate) { b_.get()[candidate] = kLowest; }

  // Follows a step toward the candidate s. `in_support` tells which columns must stay.
  template <typename InSupport>
  void follow(const Step<double>& step, int64_t s, const InSupport& in_support) {
    const float* toward = step.toward > 0 ? column(s, in_support) : nullptr;
    highest_ = kernels_->step_max(b_.get(), u_.get(), n_, step.scale, step.toward, toward);
    drift_ = step.scale * drift_ + pool_.rounding(step.scale + step.toward);
  }

 private:
  static constexpr float kLowest = -std::numeric_limits<float>::infinity();

  // In the same pass over the pool, the column of the candidate that is likely to be next. A third
  // one would gain 0 to 9 % of a query's time on the Xeon of screened_correlations.h, 3 % on
  // average.
  template <typename InSupport>
  const float* column(int64_t candidate, const InSupport& in_support) {
    if (const float* column = columns_.find(candidate)) return column;
    int64_t candidates[kMostColumns] = {candidate};
    float* out[kMostColumns] = {columns_.place(candidate, in_support)};
    const int64_t next = kernels_->highest_without_slot(b_.get(), u_.get(), columns_.slots(), n_);
    if (next >= 0) candidates[1] = next, out[1] = columns_.place(next, in_support);
    pool_.multiply(candidates, next >= 0 ? 2 : 1, out);
    return out[0];
  }

  // Between calls, for every candidate k that was not dropped and every residual r so far:
  //   |b_[k] - u_[k] - <x_k, r>| <= error(|r|) and b_[k] - u_[k] <= highest_;
  // b_[k] is -infinity for all others and in the padding, n_ = padded(K).
  QuantizedPool<T> pool_;
  const ScreeningKernels* kernels_ = nullptr;
  ColumnCache<float> columns_;  // of the pool's products, by candidate
  Aligned<float> b_, u_;        // of every candidate
  int64_t n_ = 0;
  double highest_ = 0;
  double drift_ = 0;  // bounds what rounding has done to u_
  Aligned<int64_t> at_least_;
};

}  // namespace hullft
