// Rounding float32 rows to float16, and what that loses.
#pragma once

#include "kernels.h"
#include "real.h"

namespace hullft {
namespace {

#if defined(__AVX512F__) || defined(__F16C__)
// x in whole vectors; adds to `lost` the squares of what they lose.
inline void narrow_vectors(const float* x, int64_t n, Float16* out, VecF& lost) {
  for (int64_t i = 0; i < n; i += kFloats) {
    const VecF value = load_floats(x + i);
    store_floats(out + i, value);
    const VecF off = value - load_floats(out + i);
    lost += off * off;
  }
}

double narrow_kernel(const float* x, int64_t d, Float16* out) {
  VecF lost = {};
  const int64_t whole = d / kFloats * kFloats, rest = d - whole;
  narrow_vectors(x, whole, out, lost);
  if (rest) {
    float last[kFloats] = {};
    Float16 narrowed[kFloats];
    std::memcpy(last, x + whole, size_t(rest) * sizeof(float));
    narrow_vectors(last, kFloats, narrowed, lost);
    std::memcpy(out + whole, narrowed, size_t(rest) * sizeof(Float16));
  }
  return sum_lanes(lost);
}

constexpr auto narrow_or_null() { return &narrow_kernel; }
#else
constexpr double (*narrow_or_null())(const float*, int64_t, Float16*) { return nullptr; }
#endif

}  // namespace
}  // namespace hullft
