// Square roots and quotients of ordinary float32 numbers, rounded to nearest as by IEEE 754, from
// estimates of a processor. V is float or a vector of it. Math: see core/adam.h.
#pragma once

#include "platform.h"

namespace hullft {

// sqrt(v), with y near 1 / sqrt(v). These are the instructions that ptxas makes of a root that is
// rounded to nearest, and right with its hardware's estimates. Of other estimates within 2^-22 one
// in a million roots is the number below the nearest: tests/ops/quotient_proof.cpp counts them.
template <typename V, typename Math>
HULLFT_HD V root_from_estimate(V v, V y, const Math& math) {
  const V root = math.product(v, y);
  return math.fma(math.fma(-root, root, v), math.product(0.5f, y), root);
}

// 1 / b, with y within 2^-22 of it. As in cpu/simd/quotient.h it is the nearest number, or the
// upper one where it has to be. remainder_of_one and fma_up round up.
template <typename V, typename Math>
HULLFT_HD V reciprocal_from_estimate(V b, V y, const Math& math) {
  const V e = math.remainder_of_one(b, y);
  return math.fma(math.fma_up(e, e, e), y, y);
}

// a / b, with y of reciprocal_from_estimate: see cpu/simd/quotient.h. The remainder has the
// other sign, so that a quotient of 0 keeps its own. tests/ops/quotient_proof.cpp tries all
// mantissas.
template <typename V, typename Math>
HULLFT_HD V quotient_from_reciprocal(V a, V b, V y, const Math& math) {
  V quotient = math.product(a, y);
  for (int i = 0; i < 2; ++i) quotient = math.fma(-math.fma(b, quotient, -a), y, quotient);
  return quotient;
}

}  // namespace hullft
