// Columns of the Gram matrix G = X X^T in float64, computed when an atom is first picked.
#pragma once

#include <cstdint>

#include "column_cache.h"
#include "row_products.h"

namespace hullft {

template <typename T>
class GramColumns {
 public:
  // Room for the columns of `n_atoms` atoms of the support and some that left it.
  void begin(const T* const* rows, int64_t n_rows, int64_t d, int64_t n_atoms, bool share_rows) {
    products_.begin(rows, n_rows, d, share_rows);
    cache_.begin(n_rows, n_atoms);
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
      products_.multiply_row(atom, first);
      return first;
    }
    // Not the place of the first, which nothing protects yet.
    double* second = cache_.place(next, [&](int64_t k) { return k == atom || in_use(k); });
    products_.multiply_two_rows(atom, next, first, second);
    return first;
  }

  template <typename InUse>
  const double* get(int64_t atom, const InUse& in_use) {
    return get(atom, in_use, [] { return int64_t(-1); });
  }

  bool has(int64_t atom) const { return cache_.find(atom) != nullptr; }

  // out[k] = <rows[k], x> for every row, 0 in the padding.
  void multiply(const T* x, double* out) { products_.multiply(x, out); }

 private:
  RowProducts<T> products_;
  ColumnCache<double> cache_;
};

}  // namespace hullft
