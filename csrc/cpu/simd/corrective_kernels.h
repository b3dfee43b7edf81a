// The inner loops of fully corrective Frank-Wolfe.
#pragma once

#include <cmath>
#include <cstdint>

#include "../../core/dtypes.h"

namespace hullft {

// Unit vectors are 16-bit integers of this norm: a product of two fits into 32 bits, by Cauchy and
// Schwarz.
constexpr double kUnitNorm = 32000;

// out[k] = rows[k] / norms[k] * kUnitNorm, `width` integers of which those past d are 0; a row of 0
// stays 0. width is that of quantized_width. Only a table knows the order of the integers.
template <typename T>
using UnitRows = void (*)(const T* const* rows, int64_t n_rows, int64_t d, int64_t width,
                          int16_t* out, double* norms);

// How far the cosine of two unit vectors may be off, as each integer is rounded.
static inline double cosine_error(int64_t width) {
  return 1.01 * std::sqrt(double(width)) / kUnitNorm + 0x1p-20;
}

struct CorrectiveKernels {
  UnitRows<float> unit_rows_float32;
  UnitRows<double> unit_rows_float64;
  UnitRows<BFloat16> unit_rows_bfloat16;
  UnitRows<Float16> unit_rows_float16;
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

  UnitRows<float> unit_rows(const float*) const { return unit_rows_float32; }
  UnitRows<double> unit_rows(const double*) const { return unit_rows_float64; }
  UnitRows<BFloat16> unit_rows(const BFloat16*) const { return unit_rows_bfloat16; }
  UnitRows<Float16> unit_rows(const Float16*) const { return unit_rows_float16; }
};

const CorrectiveKernels& corrective_kernels();

}  // namespace hullft
