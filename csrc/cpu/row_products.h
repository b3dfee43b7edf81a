// Inner products of the rows of a pool with vectors, in float64.
#pragma once

#include <algorithm>
#include <cstdint>

#include "aligned.h"
#include "share_rows.h"
#include "simd/dot_kernels.h"

namespace hullft {

template <typename T>
class RowProducts {
 public:
  void begin(const T* const* rows, int64_t n_rows, int64_t d, bool share_rows) {
    rows_ = rows, n_rows_ = n_rows, d_ = d, share_rows_ = share_rows;
  }

  // out[k] = <rows[k], x> for every row, 0 in the padding.
  void multiply(const T* x, double* out) { multiply_wide(widened(x), out); }

  // The same for x already in float64, padded(d) values.
  void multiply_wide(const double* x, double* out) {
    multiply_rows(x, 0, out);
    std::fill(out + n_rows_, out + padded(n_rows_), 0.0);
  }

  // out[k] = <rows[k], rows[i]> for every row. The padding is left as it is.
  void multiply_row(int64_t i, double* out) { multiply_rows(widened(rows_[i]), 0, out); }

  // All products of two rows, [n_rows, n_rows]. The order of the factors does not show in a
  // product, so that half of them are enough.
  void multiply_all(double* out) {
    for (int64_t i = 0; i < n_rows_; ++i) {
      double* row = out + i * n_rows_;
      multiply_rows(widened(rows_[i]), i, row);
      for (int64_t j = i + 1; j < n_rows_; ++j) out[j * n_rows_ + i] = row[j];
    }
  }

 private:
  const double* widened(const T* x) {
    double* wide = vector_.reserve(padded(d_));
    dot_kernels<T>().widen(x, d_, wide);
    return wide;
  }

  // out[k] = <rows[k], x> for the rows from `first` on.
  void multiply_rows(const double* x, int64_t first, double* out) {
    const auto dot = dot_kernels<T>().rows;
    for_rows(n_rows_ - first, d_, share_rows_, [&](int64_t begin, int64_t end) {
      dot(rows_ + first + begin, end - begin, x, d_, out + first + begin);
    });
  }

  const T* const* rows_ = nullptr;
  int64_t n_rows_ = 0, d_ = 0;
  bool share_rows_ = false;
  AlignedDoubles vector_;
};

}  // namespace hullft
