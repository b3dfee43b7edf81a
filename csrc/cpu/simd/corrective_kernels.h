// The inner loops of fully corrective Frank-Wolfe.
#pragma once

#include <cmath>
#include <cstdint>

namespace hullft {

// Unit vectors are 16-bit integers of this norm: a product of two fits into 32 bits, by Cauchy and
// Schwarz.
constexpr double kUnitNorm = 32000;

// How far the cosine of two unit vectors may be off, as each integer is rounded.
static inline double cosine_error(int64_t width) {
  return 1.01 * std::sqrt(double(width)) / kUnitNorm + 0x1p-20;
}

struct CorrectiveKernels {
  // out[k] = norms[k] times the cosine of rows[k] and x, unit vectors of `width` integers.
  void (*estimate)(const int16_t* const* rows, const double* norms, int64_t n_rows, int64_t width,
                   const int16_t* x, double* out);
  // out = base + sum of factors[j] * vectors[j], for m vectors of n = padded(..) values. Without a
  // base it is 0.
  void (*combine)(const double* base, const double* const* vectors, const double* factors,
                  int64_t m, int64_t n, double* out);
  // x <- L^-1 x for the rows of a lower triangle and the reciprocals of its diagonal.
  void (*solve_lower)(const double* const* rows, const double* reciprocals, int64_t m, double* x);
  // x <- L^-T x
  void (*solve_upper)(const double* const* rows, const double* reciprocals, int64_t m, double* x);
};

const CorrectiveKernels& corrective_kernels();

}  // namespace hullft
