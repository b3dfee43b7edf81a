// Block principal pivoting of several queries at once, one in each lane of a vector.
#pragma once

#include <cstdint>

namespace hullft {

// min a^T A a / 2 - c^T a over a >= 0, for queries that share a Gram matrix:
//   without the sum  A_ij = G_ij, c = products
//   simplex          A_ij = G_ij - b_i - b_j + shifts, c = scales; a / sum(a) are the weights
struct PivotingProblem {
  const double* gram;      // [n, n]
  int64_t n;               // rows, kMostPivotingRows at most
  const double* products;  // b: [n, lanes]
  const double* shifts;    // [lanes] on the simplex, else null
  const double* scales;    // [lanes]: of c, beside which a slope is rounding
};

constexpr int64_t kMostPivotingRows = 64;

struct PivotingKernel {
  int lanes;
  // Values of `work`, for n rows.
  int64_t (*work)(int64_t n);
  // a: [n, lanes]; rounds: [lanes], 0 where a query has not ended.
  void (*solve)(const PivotingProblem& problem, double* work, double* a, double* rounds);
};

const PivotingKernel& pivoting_kernel();

}  // namespace hullft
