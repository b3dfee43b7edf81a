// Estimates of the correlations of all candidates with the residual, from a pool in 16-bit
// integers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <mutex>
#include <span>
#include <vector>

#include "../../core/frank_wolfe.h"
#include "../aligned.h"
#include "../column_cache.h"
#include "../query_pool.h"
#include "../share_rows.h"
#include "../simd/dot_kernels.h"
#include "../simd/screening_kernels.h"

namespace hullft {

// A pool and its query in 16-bit integers with a scale a row, and how far the correlations that are
// made of their products may be off.
template <typename T>
class QuantizedPool {
 public:
  // Reads the pool once; products[k] = <row k, query>. False when a value is not finite, a square
  // too large, or d so large that the float32 sum of the squares says too little of them.
  bool begin(const QueryPool<T>& in, float* products) {
    const int64_t n_rows = in.n_rows, d = in.d;
    if (d > kLargestDim) return false;
    kernels_ = &screening_kernels(), share_rows_ = in.share_rows;
    make_room(n_rows, d);
    const Quantize<T> round = dot_kernels<T>().quantize;
    int16_t* query = query_.reserve(width_);
    QuantizedColumn column{query, 0};
    const QuantizedBounds of_query =
        round(&in.query, 1, d, {query, &column.scale, 1}, nullptr, nullptr);
    QuantizedBounds of_rows{0, 0};
    std::mutex joining;
    // Shared only where products are: whoever makes a row has it in its cache.
    for_tiles([&](int64_t begin, int64_t end) {
      const int64_t first = begin * kQuantizedTile, n = std::min(end * kQuantizedTile, n_rows);
      const QuantizedRowsOut out{values_.get() + first * width_, scales_.data() + first,
                                 kQuantizedTile};
      const QuantizedBounds bounds =
          round(in.rows + first, n - first, d, out, &column, products + first);
      const std::lock_guard lock(joining);
      of_rows = {std::max(of_rows.norm, bounds.norm), std::max(of_rows.lost, bounds.lost)};
    });
    query_lost_ = of_query.lost, query_norm_ = double(of_query.norm) + query_lost_;
    row_lost_ = of_rows.lost, row_norm_ = double(of_rows.norm) + row_lost_;
    return std::isfinite(row_norm_) && std::isfinite(query_norm_);
  }

  double query_norm() const { return query_norm_; }

  // out[j][k] = <row k, row atoms[j]>, 0 in the padding to a whole tile, for up to kMostColumns
  // atoms.
  void multiply(const int64_t* atoms, int64_t n_atoms, float* const* out) {
    const QuantizedTiles tiles{values_.get(), scales_.data(), width_};
    for_tiles([&](int64_t begin, int64_t end) {
      kernels_->multiply_quantized(tiles, begin, end, atoms, n_atoms, out);
    });
  }

  // Bounds |e_k - <x_k, r>| for r = q - sum_j w_j x_j, w convex or all zero, and its estimate
  // e_k = <x'_k, q'> - sum_j w_j <x'_k, x'_j> from rounded vectors, x'_k = x_k - lost_k:
  //   <x_k, r> - <x'_k, r'> = <lost_k, r> + <x'_k, r - r'>,  |r - r'| <= |lost_q| + max |lost_j|.
  // Products of integers are exact in each lane; float32 sums over the lanes, scales and the last
  // difference round them less than kRoundings times. The residual and norms are rounded too. What
  // the sum over j loses is left to `rounding`.
  double error(double residual) const {
    constexpr double kRoundings = 12, kMargin = 1.1;
    const double norms = query_norm_ + row_norm_;
    const double rounded_rows = row_lost_ * (residual + 1e-6 * norms);
    const double rounded_others = row_norm_ * (query_lost_ + row_lost_);
    return kMargin * (rounded_rows + rounded_others + kRoundings * kUnit * row_norm_ * norms);
  }

  // Bounds what rounding does to a float32 sum of up to three products of rows with factors, given
  // the sum of the factors: they, the first product and every sum are rounded.
  double rounding(double factors) const { return 4 * kUnit * factors * row_norm_ * row_norm_; }

 private:
  static constexpr double kUnit = 1.0 / (1 << 24);  // of float32
  static constexpr int64_t kLargestDim = int64_t(1) << 20;
  static constexpr int64_t kProductsAtOnce = 8;  // integer ones for one in float64

  void make_room(int64_t n_rows, int64_t d) {
    width_ = quantized_width(d);
    n_tiles_ = (n_rows + kQuantizedTile - 1) / kQuantizedTile;
    const int64_t whole = n_rows / kQuantizedTile * kQuantizedTile;
    int16_t* values = values_.reserve(n_tiles_ * kQuantizedTile * width_);
    if (whole < n_rows) std::fill_n(values + whole * width_, kQuantizedTile * width_, int16_t(0));
    scales_.assign(size_t(n_tiles_ * kQuantizedTile), 0);
  }

  template <typename Body>
  void for_tiles(const Body& body) const {
    for_rows(n_tiles_, kQuantizedTile * width_ / kProductsAtOnce, share_rows_, body);
  }

  const ScreeningKernels* kernels_ = nullptr;  // that made the tiles, which others cannot read
  int64_t n_tiles_ = 0, width_ = 0;
  bool share_rows_ = false;
  Aligned<int16_t> values_, query_;  // in tiles of kQuantizedTile rows, and alone
  std::vector<float> scales_;        // of each row of the tiles
  double row_lost_ = 0, query_lost_ = 0, row_norm_ = 0, query_norm_ = 0;
};

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
