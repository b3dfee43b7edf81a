// A pool and its query in 16-bit integers with a scale a row, and how far the correlations that are
// made of their products may be off.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <mutex>
#include <vector>

#include "aligned.h"
#include "query_pool.h"
#include "share_rows.h"
#include "simd/kernels.h"

namespace hullft {

template <typename T>
class QuantizedPool {
 public:
  // Reads the pool once; products[k] = <row k, query>. False when a value is not finite, a square
  // too large, or d so large that the float32 sum of the squares says too little of them.
  bool begin(const QueryPool<T>& in, float* products) {
    const int64_t n_rows = in.n_rows, d = in.d;
    if (d > kLargestDim) return false;
    n_rows_ = n_rows, width_ = quantized_width(d), share_rows_ = in.share_rows;
    int16_t* values = values_.reserve((n_rows + 1) * width_);
    scales_.resize(size_t(n_rows + 1));
    const Quantize<T> round = dot_kernels<T>(kernels()).quantize;
    const auto place = [&](int64_t k) {
      return QuantizedRowsOut{values + k * width_, scales_.data() + k};
    };
    const QuantizedBounds of_query = round(&in.query, 1, d, place(n_rows), nullptr, nullptr);
    const QuantizedColumn column{place(n_rows).values, scales_.back()};
    QuantizedBounds of_rows{0, 0};
    std::mutex joining;
    // Shared only where products are: whoever makes a row has it in its cache.
    for_rows(n_rows, width_ / kProductsAtOnce, share_rows_, [&](int64_t begin, int64_t end) {
      const QuantizedBounds found =
          round(in.rows + begin, end - begin, d, place(begin), &column, products + begin);
      const std::lock_guard lock(joining);
      of_rows = {std::max(of_rows.norm, found.norm), std::max(of_rows.lost, found.lost)};
    });
    query_lost_ = of_query.lost, query_norm_ = double(of_query.norm) + query_lost_;
    row_lost_ = of_rows.lost, row_norm_ = double(of_rows.norm) + row_lost_;
    return std::isfinite(row_norm_) && std::isfinite(query_norm_);
  }

  double query_norm() const { return query_norm_; }

  // out[j][k] = <row k, row atoms[j]>, for up to kMostColumns atoms.
  void multiply(const int64_t* atoms, int64_t n_atoms, float* const* out) {
    const int16_t* columns[kMostColumns];
    float scales[kMostColumns];
    for (int64_t j = 0; j < n_atoms; ++j) {
      columns[j] = values_.get() + atoms[j] * width_;
      scales[j] = scales_[size_t(atoms[j])];
    }
    for_rows(n_rows_, width_ / kProductsAtOnce, share_rows_, [&](int64_t begin, int64_t end) {
      float* from[kMostColumns];
      for (int64_t j = 0; j < n_atoms; ++j) from[j] = out[j] + begin;
      kernels().multiply_quantized(
          {values_.get() + begin * width_, scales_.data() + begin, end - begin, width_}, columns,
          scales, n_atoms, from);
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

  int64_t n_rows_ = 0, width_ = 0;
  bool share_rows_ = false;
  Aligned<int16_t> values_;    // [n_rows + 1, width], the query last
  std::vector<float> scales_;  // of each row and the query
  double row_lost_ = 0, query_lost_ = 0, row_norm_ = 0, query_norm_ = 0;
};

}  // namespace hullft
