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
  // atoms must stay.
  template <typename InUse>
  const double* get(int64_t atom, const InUse& in_use) {
    if (const double* column = cache_.find(atom)) return column;
    double* column = cache_.place(atom, in_use);
    products_.multiply_row(atom, column);
    return column;
  }

  // out[k] = <rows[k], x> for every row, 0 in the padding.
  void multiply(const T* x, double* out) { products_.multiply(x, out); }

 private:
  RowProducts<T> products_;
  ColumnCache<double> cache_;
};

}  // namespace hullft
