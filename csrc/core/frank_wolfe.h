// The arithmetic of one Frank-Wolfe step, shared by the CPU and CUDA schedules.
//
// Minimise ||q - X^T w||^2 over the simplex. With G = X X^T, b = X q and u = G w the state is O(K):
// c = b - u is the correlation of every candidate with the residual r = q - X^T w, and
// <r, X^T w> = w.b - w.u.  Variants: Frank and Wolfe (1956); away and pairwise steps after
// Lacoste-Julien and Jaggi, "On the Global Linear Convergence of Frank-Wolfe Optimization Variants"
// (2015).
#pragma once

#include <cmath>

#include "platform.h"

namespace hullft {

enum class Variant : int { kVanilla = 0, kAway = 1, kPairwise = 2, kCorrective = 3 };

// A direction this short (squared) cannot be told from rounding on unit vectors.
constexpr double kMinSquaredLength = 1e-12;

template <typename T>
HULLFT_HD T larger(T x, T y) {
  return x > y ? x : y;
}

// The same between two points of any norm, given their squares. No other row counts: beside one
// that is far longer, all points would be one. Equal points have no direction between them, even at
// 0.
template <typename T>
HULLFT_HD bool is_rounding(T squared_length, T square, T other_square) {
  return double(squared_length) <= kMinSquaredLength * double(larger(square, other_square));
}

template <typename S>
HULLFT_HD constexpr S epsilon() {
  return sizeof(S) == 8 ? S(2.220446049250313e-16) : S(1.1920929e-7);
}

// What a step needs to know of one candidate k.
template <typename T>
struct Atom {
  T c;       // correlation with the residual, b_k - u_k
  T u;       // (G w)_k
  T gram;    // G_kk
  T weight;  // w_k
};

// The inner products of the current iterate.
template <typename T>
struct Iterate {
  T wb;  // <w, b>
  T wu;  // <w, u>
};

// <w, c>, which is also <r, X^T w>
template <typename T>
HULLFT_HD T mean_correlation(const Iterate<T>& it) {
  return it.wb - it.wu;
}

template <typename T>
HULLFT_HD T squared_residual(const Iterate<T>& it, T qq) {
  const T r2 = qq - 2 * it.wb + it.wu;
  return r2 > T(0) ? r2 : T(0);
}

// How many roundings a slope at the optimum is made of. Of 400 random problems in float64, tol = 0,
// "away" never stopped on 354 without a bound and on 2 with 16, "pairwise" on 58 and on 1. In
// float32, whose gaps are accurate to about 1e-7, 16 would cost a digit.
template <typename S>
HULLFT_HD constexpr double level_roundings() {
  return sizeof(S) == 8 ? 16 : 2;
}

// What a correlation is the difference of, in size: its own and that of <x_k, X^T w>.
template <typename T>
HULLFT_HD T size_of(const Atom<T>& k) {
  return fabs(k.c) + fabs(k.u);
}

template <typename T>
HULLFT_HD T size_of(const Iterate<T>& it) {
  return fabs(mean_correlation(it)) + fabs(it.wu);
}

// Whether a slope, the difference of two correlations, is no more than rounding of the state's type
// S beside what they are made of: the optimum. Steps there would go back and forth until max_iter.
// "vanilla" has none of this: it ends with its support.
template <typename S, typename T>
HULLFT_HD bool is_level(T slope, T size, T other_size) {
  constexpr double kRounding = level_roundings<S>() * double(epsilon<S>());
  return double(slope) <= kRounding * double(size + other_size);
}

// w <- scale * w + toward * e_s - away * e_a, and u follows with the same coefficients on the
// columns of G. `moves` is false at a stationary point; `drops` says that w_a becomes exactly 0.
template <typename T>
struct Step {
  T scale = 1;
  T toward = 0;
  T away = 0;
  bool moves = false;
  bool drops = false;
};

template <typename T>
HULLFT_HD T clip(T x, T low, T high) {
  return x < low ? low : (x > high ? high : x);
}

// The minimiser along a direction, as a fraction of it: its slope is half the descent per unit.
template <typename T>
HULLFT_HD T line_search(T slope, T squared_length) {
  return clip(slope / squared_length, T(0), T(1));
}

// The steps below may have a narrower type S than the inner products that they are made of.

// Squared length of the direction between the iterate and the atom k.
template <typename T>
HULLFT_HD T squared_direction(const Atom<T>& k, const Iterate<T>& it) {
  return k.gram - 2 * k.u + it.wu;
}

// Toward the vertex s.
template <typename T, typename S = T>
HULLFT_HD Step<S> toward_step(const Atom<T>& s, const Iterate<T>& it) {
  Step<S> step;
  const T curvature = squared_direction(s, it);
  if (is_rounding(curvature, s.gram, it.wu)) return step;
  const S gamma = line_search(S(s.c - mean_correlation(it)), S(curvature));
  step.scale = 1 - gamma;
  step.toward = gamma;
  step.moves = true;
  return step;
}

// The same step of the away-step variant, which goes on to the optimum and stops there.
template <typename T, typename S = T>
HULLFT_HD Step<S> forward_step(const Atom<T>& s, const Iterate<T>& it) {
  const T slope = s.c - mean_correlation(it);
  if (is_level<S>(slope, size_of(s), size_of(it))) return {};
  Step<S> step = toward_step<T, S>(s, it);
  step.moves = step.moves && step.toward > S(0);
  return step;
}

// Away from the support's worst atom a, at most until its weight is used up.
template <typename T, typename S = T>
HULLFT_HD Step<S> away_step(const Atom<T>& a, const Iterate<T>& it) {
  Step<S> step;
  const T slope = mean_correlation(it) - a.c;
  if (is_level<S>(slope, size_of(a), size_of(it))) return step;
  const T curvature = squared_direction(a, it);
  if (is_rounding(curvature, a.gram, it.wu)) return step;
  const S gamma_max = S(a.weight) / (1 - S(a.weight));
  const S gamma = clip(S(slope) / S(curvature), S(0), gamma_max);
  step.scale = 1 + gamma;
  step.away = gamma;
  step.moves = gamma > S(0);
  step.drops = gamma == gamma_max;
  return step;
}

// Moves weight from a to s. Between two (nearly) equal atoms any amount is a descent as long as the
// slope is positive, so all of it moves and the support gets smaller instead of stalling.
template <typename T, typename S = T>
HULLFT_HD Step<S> pairwise_step(const Atom<T>& s, const Atom<T>& a, T gram_sa) {
  Step<S> step;
  const T slope = s.c - a.c;
  if (!(slope > T(0)) || is_level<S>(slope, size_of(s), size_of(a))) return step;
  const T curvature = s.gram + a.gram - 2 * gram_sa;
  const S weight = S(a.weight);
  const S gamma =
      is_rounding(curvature, s.gram, a.gram) ? weight : clip(S(slope) / S(curvature), S(0), weight);
  step.toward = gamma;
  step.away = gamma;
  step.moves = gamma > S(0);
  step.drops = gamma == weight;
  return step;
}

// The atoms of a pairwise step that was not cut short, the lower candidate first. Their
// correlations are equal then, but for rounding: the next step takes the first for either.
template <typename I>
struct LevelAtoms {
  I first = -1, second = -1;
};

template <typename I>
HULLFT_HD LevelAtoms<I> level_atoms(I s, I a) {
  return s < a ? LevelAtoms<I>{s, a} : LevelAtoms<I>{a, s};
}

template <typename I>
HULLFT_HD I level_atom(const LevelAtoms<I>& level, I k) {
  return k == level.second ? level.first : k;
}

// The away-step variant takes the steeper of its two directions, the toward step on equality.
template <typename T>
HULLFT_HD bool prefers_away(T c_s, T c_a, const Iterate<T>& it) {
  return c_s - mean_correlation(it) < mean_correlation(it) - c_a;
}

}  // namespace hullft
