// Exact float32 quotients by multiplication. Several Adam steps with one gradient would wait for
// the divider on some processors, which also takes the square roots.
#pragma once

#include "real.h"

namespace hullft {
namespace {

// With dividends below kLargestDividend in size and divisors between these bounds, nothing on the
// way to a quotient overflows.
constexpr float kLargestDividend = 0x1p60f, kSmallestDivisor = 0x1p-60f, kLargestDivisor = 0x1p40f;

// From here on neither a quotient nor its remainder loses bits below the smallest normal number.
constexpr float kSmallestDividend = 0x1p-63f;

#if defined(__AVX512F__)

constexpr bool kHasQuickQuotients = true;

inline VecF larger(VecF a, VecF b) { return VecF(_mm512_max_ps(__m512(a), __m512(b))); }

// The smaller and the larger of |a| and |b|; if one is NaN, the other.
inline VecF smaller_size(VecF a, VecF b) {
  return VecF(_mm512_range_ps(__m512(a), __m512(b), 0b1010));
}

inline VecF larger_size(VecF a, VecF b) {
  return VecF(_mm512_range_ps(__m512(a), __m512(b), 0b1011));
}

// False where a lane is NaN.
inline bool all_below(VecF v, float limit) {
  return _mm512_cmp_ps_mask(__m512(v), _mm512_set1_ps(limit), _CMP_LT_OQ) == 0xffff;
}

// c - a * b, rounded once.
inline VecF subtract_product(VecF a, VecF b, VecF c) {
  return VecF(_mm512_fnmadd_ps(__m512(a), __m512(b), __m512(c)));
}

// 1 / b from an estimate y with an error below 2^-14 of it: y (1 + e + e^2) with e = 1 - b y, which
// leaves out e^3 and what follows. It is the nearest float unless 1 / b lies almost halfway between
// two. Then it may be the other neighbour, rounded up where the proof needs that: e and e^2 are
// rounded up for it.
inline VecF refined_reciprocal(VecF y, VecF b) {
  constexpr int kUp = _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC;
  const __m512 e = _mm512_fnmadd_round_ps(__m512(b), __m512(y), _mm512_set1_ps(1.0f), kUp);
  return multiply_add(VecF(_mm512_fmadd_round_ps(e, e, e, kUp)), y, y);
}

// a / b rounded to nearest, with y of refined_reciprocal.
//
// After Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor"
// (1990): near enough, the remainder of q is exact, and correcting q by it rounds to nearest if y
// is the nearest number to 1 / b. Where it is not, tests/ops/quotient_proof.cpp tries all
// dividends.
inline VecF corrected_quotient(VecF a, VecF b, VecF y) {
  VecF q = rounded(a * y);
  for (int i = 0; i < 2; ++i) q = multiply_add(subtract_product(b, q, a), y, q);
  return q;
}

// a / b with the bits of the division, for ordinary numbers: see the constants above.
inline VecF quick_quotient(VecF a, VecF b) {
  return corrected_quotient(a, b, refined_reciprocal(VecF(_mm512_rcp14_ps(__m512(b))), b));
}

// Quotients that tell afterwards whether all dividends were large enough.
class QuickQuotients {
 public:
  VecF operator()(VecF a, VecF b) {
    smallest_ = smaller_size(smallest_, a);
    return quick_quotient(a, b);
  }

  bool all_exact() const {
    return lanes_at_least(smallest_, broadcast(kSmallestDividend)) == 0xffff;
  }

 private:
  VecF smallest_ = broadcast(kLargestDividend);
};

#else

constexpr bool kHasQuickQuotients = false;

#endif

}  // namespace
}  // namespace hullft
