// The inner loops of fully corrective Frank-Wolfe: cosines of all rows with the residual, sums of
// the support's rows, and the triangular solves.
#pragma once

#include "corrective_kernels.h"
#include "dot_kernels.h"
#include "quantized.h"
#include "real.h"
#include "sift_pick.h"

namespace hullft {
namespace {

// Two vectors of x in float32, after an exact scale for float64, times another as integers.
template <typename T>
inline VecS unit_vectors(const T* x, double power, float inverse) {
  VecU nearest[2];
  for (int j = 0; j < 2; ++j) {
    VecF v;
    if constexpr (sizeof(T) == 8)
      v = to_floats(load_doubles(x + j * kFloats) * power,
                    load_doubles(x + j * kFloats + kDoubles) * power);
    else
      v = load_floats(x + j * kFloats);
    const VecF shifted = multiply_add(v, broadcast(inverse), broadcast(kRound));
    nearest[j] = load_bytes<VecU>(&shifted);
  }
  return VecS((nearest[0] & 0xffffu) | (nearest[1] << 16));
}

// The power of two that brings a positive number to 1..2.
inline double power_to_one(double x) {
  constexpr uint64_t kExponent = uint64_t(0x7ff) << 52;
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof x);
  bits = (uint64_t(2046) << 52) - (bits & kExponent);
  double power;
  std::memcpy(&power, &bits, sizeof power);
  return power;
}

template <typename T>
void unit_rows_kernel(const T* const* rows, int64_t n_rows, int64_t d, int64_t width, int16_t* out,
                      double* norms) {
  const int64_t whole = d / kVector * kVector;
  for (int64_t k = 0; k < n_rows; ++k, out += width) {
    double square;
    squared_norms_kernel(rows + k, 1, d, &square);
    norms[k] = __builtin_sqrt(square);
    // A power of two, so that equal rows of float32 and float64 have the same integers.
    const double power = sizeof(T) == 8 ? power_to_one(norms[k]) : 1;
    const float inverse = norms[k] > 0 ? float(kUnitNorm / (norms[k] * power)) : 0;
    int64_t i = 0;
    for (; i < whole; i += kVector) store_bytes(out + i, unit_vectors(rows[k] + i, power, inverse));
    if (i < d) {
      T last[kVector] = {};
      std::memcpy(last, rows[k] + i, size_t(d - i) * sizeof(T));
      store_bytes(out + i, unit_vectors(last, power, inverse));
      i += kVector;
    }
    for (; i < width; i += kVector) store_bytes(out + i, VecS{});
  }
}

template <int kRows>
inline void estimate_tile(const int16_t* const* rows, const double* norms, int64_t width,
                          const int16_t* x, double* out) {
  VecI sums[kRows] = {};
  for (int64_t i = 0; i < width; i += kVector) {
    const VecS x_i = load_bytes<VecS>(x + i);
    for (int r = 0; r < kRows; ++r)
      sums[r] = add_products(sums[r], load_bytes<VecS>(rows[r] + i), x_i);
  }
  // Exact, whatever the order: the sum fits, though the sum of some lanes may wrap.
  for (int r = 0; r < kRows; ++r)
    out[r] = norms[r] * (double(int32_t(sum_lanes(VecU(sums[r])))) / (kUnitNorm * kUnitNorm));
}

void estimate_kernel(const int16_t* const* rows, const double* norms, int64_t n_rows, int64_t width,
                     const int16_t* x, double* out) {
  constexpr int kRows = 8;  // independent sums, to hide the latency of a multiply-add
  int64_t k = 0;
  for (; k + kRows <= n_rows; k += kRows)
    estimate_tile<kRows>(rows + k, norms + k, width, x, out + k);
  for (; k < n_rows; ++k) estimate_tile<1>(rows + k, norms + k, width, x, out + k);
}

template <int kVectors>
inline void combine_block(const double* base, const double* const* vectors, const double* factors,
                          int64_t m, int64_t k, double* out) {
  VecD sums[kVectors] = {};
  if (base)
    for (int i = 0; i < kVectors; ++i) sums[i] = load_doubles(base + k + i * kDoubles);
  for (int64_t j = 0; j < m; ++j) {
    const VecD factor = broadcast(factors[j]);
    for (int i = 0; i < kVectors; ++i)
      sums[i] = multiply_add(factor, load_doubles(vectors[j] + k + i * kDoubles), sums[i]);
  }
  for (int i = 0; i < kVectors; ++i) store_doubles(out + k + i * kDoubles, sums[i]);
}

void combine_kernel(const double* base, const double* const* vectors, const double* factors,
                    int64_t m, int64_t n, double* out) {
  constexpr int kMany = 8, kFew = kPadding / kDoubles;
  int64_t k = 0;
  for (; k + kMany * kDoubles <= n; k += kMany * kDoubles)
    combine_block<kMany>(base, vectors, factors, m, k, out);
  for (; k < n; k += kFew * kDoubles) combine_block<kFew>(base, vectors, factors, m, k, out);
}

inline double row_dot(const double* row, const double* x, int64_t n) {
  VecD even = {}, odd = {};
  int64_t i = 0;
  for (; i + 2 * kDoubles <= n; i += 2 * kDoubles) {
    even = multiply_add(load_doubles(row + i), load_doubles(x + i), even);
    odd = multiply_add(load_doubles(row + i + kDoubles), load_doubles(x + i + kDoubles), odd);
  }
  double sum = sum_lanes(even + odd);
  for (; i < n; ++i) sum += row[i] * x[i];
  return sum;
}

void solve_lower_kernel(const double* const* rows, const double* reciprocals, int64_t m,
                        double* x) {
  for (int64_t i = 0; i < m; ++i) x[i] = (x[i] - row_dot(rows[i], x, i)) * reciprocals[i];
}

void solve_upper_kernel(const double* const* rows, const double* reciprocals, int64_t m,
                        double* x) {
  for (int64_t i = m - 1; i >= 0; --i) {
    const double a = x[i] * reciprocals[i];
    x[i] = a;
    const VecD factor = broadcast(-a);
    int64_t j = 0;
    for (; j + kDoubles <= i; j += kDoubles)
      store_doubles(x + j, multiply_add(factor, load_doubles(rows[i] + j), load_doubles(x + j)));
    for (; j < i; ++j) x[j] -= a * rows[i][j];
  }
}

}  // namespace
}  // namespace hullft
