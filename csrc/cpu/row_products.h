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
  void multiply(const T* x, double* out) { multiply_wide(widened(x, vector_), out); }

  // The same for x already in float64, padded(d) values.
  void multiply_wide(const double* x, double* out) {
    multiply_rows(&x, 1, 0, &out);
    std::fill(out + n_rows_, out + padded(n_rows_), 0.0);
  }

  // out[k] = <rows[k], rows[i]> for every row. The padding is left as it is.
  void multiply_row(int64_t i, double* out) {
    const double* x = widened(rows_[i], vector_);
    multiply_rows(&x, 1, 0, &out);
  }

  // The same for two rows in one pass.
  void multiply_two_rows(int64_t i, int64_t j, double* of_i, double* of_j) {
    const double* x[] = {widened(rows_[i], vector_), widened(rows_[j], second_vector_)};
    double* out[] = {of_i, of_j};
    multiply_rows(x, 2, 0, out);
  }

  // All products of two rows, [n_rows, n_rows]. The order of the factors does not show in a
  // product, so that half of them are enough. Two rows in one pass, as long ones come from memory.
  void multiply_all(double* out) {
    for (int64_t i = 0; i < n_rows_; i += 2) {
      const int64_t n = std::min<int64_t>(2, n_rows_ - i);
      double* rows[] = {out + i * n_rows_, out + (i + 1) * n_rows_};
      const double* x[] = {widened(rows_[i], vector_),
                           n > 1 ? widened(rows_[i + 1], second_vector_) : nullptr};
      multiply_rows(x, n, i, rows);
      for (int64_t j = i + 1; j < n_rows_; ++j)
        for (int64_t c = 0; c < n; ++c) out[j * n_rows_ + i + c] = rows[c][j];
    }
  }

 private:
  const double* widened(const T* x, AlignedDoubles& vector) {
    double* wide = vector.reserve(padded(d_));
    dot_kernels<T>().widen(x, d_, wide);
    return wide;
  }

  // out[c][k] = <rows[k], x[c]> for the rows from `first` on; n is 1 or 2.
  void multiply_rows(const double* const* x, int64_t n, int64_t first, double* const* out) {
    const auto dot = dot_kernels<T>().rows;
    for_rows(n_rows_ - first, d_, share_rows_, [&](int64_t begin, int64_t end) {
      double* const from[] = {out[0] + first + begin, n > 1 ? out[1] + first + begin : nullptr};
      dot(rows_ + first + begin, end - begin, x, n, d_, from);
    });
  }

  const T* const* rows_ = nullptr;
  int64_t n_rows_ = 0, d_ = 0;
  bool share_rows_ = false;
  AlignedDoubles vector_, second_vector_;
};

}  // namespace hullft
