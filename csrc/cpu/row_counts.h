// Weights of rows to counts: their Gram matrix, their products with the query, and the integerizer.
#pragma once

#include <cmath>
#include <cstdint>

#include "aligned.h"
#include "integerizer.h"
#include "row_products.h"

namespace hullft {

template <typename T>
class RowCounts {
 public:
  // counts [m], for weights [m] of rows [m, d]. False when a weight or a product is not finite.
  bool count(const T* const* rows, int64_t m, const T* query, int64_t d, bool share_rows,
             const double* weights, int64_t n_select, int64_t swap_passes, int64_t* counts) {
    products_.begin(rows, m, d, share_rows);
    double *b = b_.reserve(padded(m)), *gram = gram_.reserve(m * m);
    products_.multiply(query, b);
    products_.multiply_all(gram);
    double poison = Integerizer::total(weights, m) * 0;
    for (int64_t i = 0; i < m; ++i) poison += (b[i] + weights[i]) * 0 + gram[i * m + i] * 0;
    if (std::isnan(poison)) return false;
    integerizer_.run(gram, b, weights, m, n_select, swap_passes, counts);
    return true;
  }

 private:
  RowProducts<T> products_;
  AlignedDoubles b_, gram_;
  Integerizer integerizer_;
};

}  // namespace hullft
