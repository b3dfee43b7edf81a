// The arithmetic of one Frank-Wolfe step, shared by the CPU and CUDA schedules.
//
// Minimise ||q - X^T w||^2 over the simplex. With G = X X^T, b = X q and u = G w the state is O(K):
// c = b - u is the correlation of every candidate with the residual r = q - X^T w, and
// <r, X^T w> = w.b - w.u.  The steps are Frank and Wolfe's (1956).
#pragma once

#include <cmath>

#include "platform.h"

namespace hullft {

enum class Variant : int { kVanilla = 0, kCorrective = 1 };

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
  T c;     // correlation with the residual, b_k - u_k
  T u;     // (G w)_k
  T gram;  // G_kk
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

// w <- scale * w + toward * e_s, and u follows with the same coefficients on the column of G.
// `moves` is false at a stationary point.
template <typename T>
struct Step {
  T scale = 1;
  T toward = 0;
  bool moves = false;
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

// Squared length of the direction between the iterate and the atom k.
template <typename T>
HULLFT_HD T squared_direction(const Atom<T>& k, const Iterate<T>& it) {
  return k.gram - 2 * k.u + it.wu;
}

// Toward the vertex s.
template <typename T>
HULLFT_HD Step<T> toward_step(const Atom<T>& s, const Iterate<T>& it) {
  Step<T> step;
  const T curvature = squared_direction(s, it);
  if (is_rounding(curvature, s.gram, it.wu)) return step;
  const T gamma = line_search(s.c - mean_correlation(it), curvature);
  step.scale = 1 - gamma;
  step.toward = gamma;
  step.moves = true;
  return step;
}

}  // namespace hullft
