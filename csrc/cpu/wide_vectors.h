// Vectors in float64 of `width` values, which padded(d) gives.
#pragma once

#include <cstdint>

#include "simd/corrective_kernels.h"
#include "simd/dot_kernels.h"

namespace hullft {

inline double dot(const double* x, const double* y, int64_t width) {
  double product;
  dot_kernels<double>().few(&x, 1, y, width, &product);
  return product;
}

// x -= y
inline void subtract(double* x, const double* y, int64_t width) {
  const double less = -1;
  corrective_kernels().combine(x, &y, &less, 1, width, x);
}

}  // namespace hullft
