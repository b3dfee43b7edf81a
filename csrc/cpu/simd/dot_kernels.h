// Products of rows in float64: the inner loops that want vector instructions. dispatch.cpp chooses
// the widest instruction set that the processor has, here as for the other families of kernels.
#pragma once

#include <cstdint>

#include "../../core/dtypes.h"

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

template <typename T>
struct DotKernels {
  DotRows<T> rows;
  DotFew<T> few;
  Widen<T> widen;
  SquaredNorms<T> squared_norms;
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
