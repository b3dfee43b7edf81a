// Passes over rows: the inner loops that want vector instructions. dispatch.cpp chooses the widest
// instruction set that the processor has, here as for the other families of kernels.
#pragma once

#include <cstdint>

#include "../../core/dtypes.h"
#include "screening_kernels.h"

namespace hullft {

// Arrays of one value a candidate are padded to whole float32 vectors of the widest instruction
// set, so that no loop over them has a tail.
constexpr int64_t kPadding = 16;
static inline int64_t padded(int64_t n) { return (n + kPadding - 1) / kPadding * kPadding; }

// out[c][k] = <rows[k], columns[c]> in float64; each value depends on its own row and column alone,
// not on its place in a tile. n_columns is 1 or 2; a column is [padded(d)], zero padded.
template <typename T>
using DotRows = void (*)(const T* const* rows, int64_t n_rows, const double* const* columns,
                         int64_t n_columns, int64_t d, double* const* out);

// out[k] = <rows[k], x> with the bits of DotRows, for so few rows that widening x is not worth it.
template <typename T>
using DotFew = void (*)(const T* const* rows, int64_t n_rows, const T* x, int64_t d, double* out);

// out = x in float64, padded(d) values, zero in the padding.
template <typename T>
using Widen = void (*)(const T* x, int64_t d, double* out);

// out[k] = <rows[k], rows[k]>; each value depends on its own row alone.
template <typename T>
using SquaredNorms = void (*)(const T* const* rows, int64_t n_rows, int64_t d, double* out);

// out[k] = rows[k] / norms[k] * kUnitNorm, in `width` integers, 0 past d; a row of 0 stays 0.
// quantized_width gives the width. Only a table knows the order of the integers.
template <typename T>
using UnitRows = void (*)(const T* const* rows, int64_t n_rows, int64_t d, int64_t width,
                          int16_t* out, double* norms);

// Row k = scales[k] * the integers but for a vector of norm `lost` at most, for k < n_rows. Unless
// column is null, products[k] = <row k, column> as multiply_quantized has it. With an infinite norm
// nothing of that holds.
template <typename T>
using Quantize = QuantizedBounds (*)(const T* const* rows, int64_t n_rows, int64_t d,
                                     const QuantizedRowsOut& out, const QuantizedColumn* column,
                                     float* products);

template <typename T>
struct DotKernels {
  DotRows<T> rows;
  DotFew<T> few;
  Widen<T> widen;
  SquaredNorms<T> squared_norms;
  UnitRows<T> unit_rows;
  Quantize<T> quantize;  // null for float64, which is not screened
};

// One base for each storage type.
struct AllDotKernels : DotKernels<float>,
                       DotKernels<double>,
                       DotKernels<BFloat16>,
                       DotKernels<Float16> {};

const AllDotKernels& all_dot_kernels();

template <typename T>
const DotKernels<T>& dot_kernels() {
  return all_dot_kernels();
}

}  // namespace hullft
