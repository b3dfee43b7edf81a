// The norm of a residual from the vectors themselves.
#pragma once

#include <cmath>
#include <cstdint>

#include "../core/dtypes.h"

namespace hullft {

// Made of inner products, as core/frank_wolfe.h has it, the square is the small difference of large
// numbers where the residual is short beside the query or a row of the mix. Below this share of the
// largest of their squares it has lost more than float64 can spare.
constexpr double kCancelled = 1e-6;

// Starts as the query in float64, d values, and loses the rows of the mix one by one.
class Residual {
 public:
  Residual(double* values, int64_t d) : values_(values), d_(d) {}

  template <typename T>
  void subtract(double weight, const T* row) {
    for (int64_t i = 0; i < d_; ++i) values_[i] -= weight * widen(row[i]);
  }

  double norm() const {
    double squared = 0;
    for (int64_t i = 0; i < d_; ++i) squared += values_[i] * values_[i];
    return std::sqrt(squared);
  }

 private:
  double* values_;
  int64_t d_;
};

}  // namespace hullft
