// The norm of a residual from the vectors themselves.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "../core/dtypes.h"

namespace hullft {

// Made of inner products, as core/frank_wolfe.h has it, the square is the small difference of large
// numbers where the residual is short beside the query or a row of the mix. Below this share of the
// largest of their squares it has lost more than float64 can spare.
constexpr double kCancelled = 1e-6;

// The norm of the query, d values in float64 that it uses up, less the rows times their weights.
template <typename RowAt>
double residual_norm(double* query, int64_t d, const std::vector<double>& weights,
                     const RowAt& row_at) {
  for (size_t j = 0; j < weights.size(); ++j) {
    const auto* row = row_at(j);
    for (int64_t i = 0; i < d; ++i) query[i] -= weights[j] * widen(row[i]);
  }
  double squared = 0;
  for (int64_t i = 0; i < d; ++i) squared += query[i] * query[i];
  return std::sqrt(squared);
}

}  // namespace hullft
