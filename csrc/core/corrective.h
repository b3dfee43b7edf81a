// The arithmetic of fully corrective Frank-Wolfe, shared by the CPU and CUDA schedules: after every
// linear minimisation the weights become the best for the support.
//
// On the simplex this is Wolfe's minimum-norm-point algorithm ("Finding the Nearest Point in a
// Polytope", Mathematical Programming 11, 1976) on the rows x_k - q; without the sum it is the
// non-negative least squares of Lawson and Hanson ("Solving Least Squares Problems", 1974). Both
// keep a Cholesky factor A = L L^T of the support S and y = L^-1 target, and solve L^T a = y:
//   simplex:       A_ij = <x_i - q, x_j - q> + t, target t; a / sum(a), sum(a) = <y, y> / t
//   non-negative:  A_ij = <x_i, x_j>, target b_i
// Any positive t leaves the minimiser as it is. It makes A positive definite where the rows of S
// are affinely independent, also if q lies in their affine hull.
#pragma once

#include "frank_wolfe.h"

namespace hullft {

enum class Constraint : int { kSimplex = 0, kNonNegative = 1 };

// t, of the query's scale: a row that is far longer would drown the others. `square` is the
// first row's, for a query that is short beside it.
template <typename S>
HULLFT_HD S factor_shift(S qq, S square) {
  return larger(qq, (sizeof(S) == 8 ? S(0x1p-26) : S(0x1p-12)) * square);
}

template <typename S>
struct FactorTerms {
  S qq;
  S shift;  // t
};

template <Constraint kConstraint, typename S>
HULLFT_HD S factor_entry(S gram, S b_i, S b_j, const FactorTerms<S>& terms) {
  if (kConstraint == Constraint::kNonNegative) return gram;
  return (gram - (b_i + b_j)) + (terms.qq + terms.shift);
}

template <Constraint kConstraint, typename S>
HULLFT_HD S factor_target(S b_i, const FactorTerms<S>& terms) {
  return kConstraint == Constraint::kNonNegative ? b_i : terms.shift;
}

// Smallest pivot above the rounding of m products, for a row that joins a support of m. A row that
// depends on the support joins with it. The weights then move along that dependence, on which the
// distance hardly changes, until one of them is 0. At m = 20 the least is 1.3e-5 of A_kk in
// float32: a row within 0.4 % of the others' span counts as dependent.
template <typename S>
HULLFT_HD S least_pivot(S square, int m, S rounding = epsilon<S>()) {
  return S(4) * S(m + 8) * rounding * square;
}

// Pivot of the entering row. `left` is the part of A_kk that the support does not explain; 0 if the
// row is numerically dependent in an ill-conditioned support.
template <typename S>
HULLFT_HD S pivot_of(S left, S square, int m, S rounding = epsilon<S>()) {
  const S least = least_pivot(square, m, rounding);
  return left < -least ? S(0) : larger(left, least);
}

// The share of the way from w_i > 0 to a_i <= 0 at which the weight is 0.
template <typename S>
HULLFT_HD S share_until_zero(S w, S a) {
  return w > S(0) ? w / (w - a) : S(0);
}

// A rotation of two columns of L that moves `lower` into `diagonal`.
template <typename S>
struct Rotation {
  S cosine, sine, length;
};

template <typename S>
HULLFT_HD Rotation<S> rotation_of(S diagonal, S lower) {
  const S length = sqrt(diagonal * diagonal + lower * lower);
  return {diagonal / length, lower / length, length};
}

template <typename S>
HULLFT_HD void rotate(const Rotation<S>& rotation, S& first, S& second) {
  const S x = first, y = second;
  first = rotation.cosine * x + rotation.sine * y;
  second = rotation.cosine * y - rotation.sine * x;
}

// How many roundings add up in a slope at the optimum. In float32, whose gaps are accurate to
// about 1e-7, 16 would cost a digit.
template <typename S>
HULLFT_HD constexpr double stationary_roundings() {
  return sizeof(S) == 8 ? 16 : 2;
}

// What a correlation is the difference of, in size: its own and the size of <x_k, X^T w>.
template <typename S>
HULLFT_HD S size_of(const Atom<S>& k) {
  return fabs(k.c) + fabs(k.u);
}

template <typename S>
HULLFT_HD S size_of(const Iterate<S>& it) {
  return fabs(mean_correlation(it)) + fabs(it.wu);
}

// Whether a slope, the difference of two correlations, is no more than rounding beside what they
// are made of: the optimum. Further cycles would go back and forth until max_iter.
template <typename S>
HULLFT_HD bool is_stationary(S slope, S size, S other_size) {
  constexpr double kRounding = stationary_roundings<S>() * double(epsilon<S>());
  return double(slope) <= kRounding * double(size + other_size);
}

// Whether the linear minimisation says that the weights are optimal, but for rounding. `slope` is
// the gap on the simplex, the largest correlation without it.
template <Constraint kConstraint, typename S>
HULLFT_HD bool is_optimal(S slope, const Atom<S>& best, const Iterate<S>& it) {
  return is_stationary<S>(slope, size_of(best),
                          kConstraint == Constraint::kSimplex ? size_of(it) : S(0));
}

}  // namespace hullft
