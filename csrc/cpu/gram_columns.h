// Columns of the Gram matrix G = X X^T in float64, computed when an atom is first picked.
#pragma once

#include <algorithm>
#include <cstdint>

#include "column_cache.h"
#include "share_rows.h"
#include "simd/kernels.h"

namespace hullft {

template <typename T>
class GramColumns {
 public:
  void begin(const T* const* rows, int64_t n_rows, int64_t d, int64_t kept, bool share_rows) {
    rows_ = rows, n_rows_ = n_rows, d_ = d, share_rows_ = share_rows;
    cache_.begin(n_rows, kept);
  }

  // G[:, atom], padded(n_rows) values. Valid until a later `get` evicts it: `in_use` tells which
  // atoms must stay. A pass over the rows that is needed takes the column of likely_next() with it,
  // an atom that has none, unless it is below 0.
  template <typename InUse, typename LikelyNext>
  const double* get(int64_t atom, const InUse& in_use, const LikelyNext& likely_next) {
    if (const double* column = cache_.find(atom)) return column;
    double* first = cache_.place(atom, in_use);
    const int64_t next = likely_next();
    if (next < 0) {
      multiply(rows_[atom], first);
      return first;
    }
    const double* x[] = {widened(rows_[atom], vector_), widened(rows_[next], second_vector_)};
    // Not the place of the first, which nothing protects yet.
    double* out[] = {first, cache_.place(next, [&](int64_t k) { return k == atom || in_use(k); })};
    multiply_rows(x, 2, 0, out);
    return first;
  }

  bool has(int64_t atom) const { return cache_.find(atom) != nullptr; }

  template <typename InUse>
  const double* get(int64_t atom, const InUse& in_use) {
    return get(atom, in_use, [] { return int64_t(-1); });
  }

  // out[k] = <rows[k], x> for every row, 0 in the padding.
  void multiply(const T* x, double* out) { multiply_wide(widened(x, vector_), out); }

  // The same for x already in float64, padded(d) values.
  void multiply_wide(const double* x, double* out) {
    multiply_rows(&x, 1, 0, &out);
    std::fill(out + n_rows_, out + padded(n_rows_), 0.0);
  }

  // All of G, [n_rows, n_rows]. The order of the factors does not show in a product, so that half
  // of them are enough.
  void multiply_all(double* out) {
    for (int64_t i = 0; i < n_rows_; ++i) {
      double* row = out + i * n_rows_;
      const double* x = widened(rows_[i], vector_);
      multiply_rows(&x, 1, i, &row);
      for (int64_t j = i + 1; j < n_rows_; ++j) out[j * n_rows_ + i] = row[j];
    }
  }

 private:
  const double* widened(const T* x, AlignedDoubles& vector) {
    double* wide = vector.reserve(padded(d_));
    dot_kernels<T>(kernels()).widen(x, d_, wide);
    return wide;
  }

  // out[c][k] = <rows[k], x[c]> for the rows from `first` on; n is 1 or 2.
  void multiply_rows(const double* const* x, int64_t n, int64_t first, double* const* out) {
    const auto dot = dot_kernels<T>(kernels()).rows;
    for_rows(n_rows_ - first, d_, share_rows_, [&](int64_t begin, int64_t end) {
      double* const from[] = {out[0] + first + begin, n > 1 ? out[1] + first + begin : nullptr};
      dot(rows_ + first + begin, end - begin, x, n, d_, from);
    });
  }

  const T* const* rows_ = nullptr;
  int64_t n_rows_ = 0, d_ = 0;
  bool share_rows_ = false;
  ColumnCache<double> cache_;
  AlignedDoubles vector_, second_vector_;
};

}  // namespace hullft
