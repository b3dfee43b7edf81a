// Register-tiled dot products of pool rows with one or two float64 columns.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace hullft {
namespace {

constexpr int kTileRows = 4;

inline double sum_lanes(VecD v) {
  double total = 0;
  for (int i = 0; i < kDoubles; ++i) total += v[i];
  return total;
}

// The d % kDoubles last elements of a row, zero padded to a vector.
template <typename T>
inline VecD load_tail(const T* row, int64_t d) {
  T buffer[kDoubles] = {};
  const int64_t whole = d / kDoubles * kDoubles;
  std::memcpy(buffer, row + whole, size_t(d - whole) * sizeof(T));
  return load_doubles(buffer);
}

// Two chains a row, over even and odd vectors, whatever the tile: a row's value must not depend on
// the tile it falls in, or equal rows would cease to tie.
template <typename T, int kRows, int kColumns>
inline void dot_tile(const T* const* rows, const double* columns, int64_t column_stride, int64_t d,
                     double* out, int64_t out_stride) {
  VecD even[kColumns][kRows] = {}, odd[kColumns][kRows] = {};
  const int64_t whole = d / kDoubles * kDoubles;
  int64_t i = 0;
  for (; i + 2 * kDoubles <= whole; i += 2 * kDoubles) {
    for (int r = 0; r < kRows; ++r) {
      const VecD x0 = load_doubles(rows[r] + i);
      const VecD x1 = load_doubles(rows[r] + i + kDoubles);
      for (int c = 0; c < kColumns; ++c) {
        even[c][r] += x0 * load_doubles(columns + c * column_stride + i);
        odd[c][r] += x1 * load_doubles(columns + c * column_stride + i + kDoubles);
      }
    }
  }
  if (i < whole) {
    for (int r = 0; r < kRows; ++r) {
      const VecD x = load_doubles(rows[r] + i);
      for (int c = 0; c < kColumns; ++c)
        even[c][r] += x * load_doubles(columns + c * column_stride + i);
    }
  }
  if (whole < d) {
    for (int r = 0; r < kRows; ++r) {
      const VecD x = load_tail(rows[r], d);
      for (int c = 0; c < kColumns; ++c)
        odd[c][r] += x * load_doubles(columns + c * column_stride + whole);
    }
  }
  for (int c = 0; c < kColumns; ++c)
    for (int r = 0; r < kRows; ++r) out[c * out_stride + r] = sum_lanes(even[c][r] + odd[c][r]);
}

template <typename T, int kColumns>
inline void dot_columns(const T* const* rows, int64_t n_rows, const double* columns,
                        int64_t column_stride, int64_t d, double* out, int64_t out_stride) {
  int64_t k = 0;
  for (; k + kTileRows <= n_rows; k += kTileRows)
    dot_tile<T, kTileRows, kColumns>(rows + k, columns, column_stride, d, out + k, out_stride);
  for (; k < n_rows; ++k)
    dot_tile<T, 1, kColumns>(rows + k, columns, column_stride, d, out + k, out_stride);
}

template <typename T>
void dot_rows_kernel(const T* const* rows, int64_t n_rows, const double* columns, int64_t n_columns,
                     int64_t d, double* out, int64_t out_stride) {
  const int64_t column_stride = padded(d);
  int64_t c = 0;
  for (; c + 2 <= n_columns; c += 2)
    dot_columns<T, 2>(rows, n_rows, columns + c * column_stride, column_stride, d,
                      out + c * out_stride, out_stride);
  if (c < n_columns)
    dot_columns<T, 1>(rows, n_rows, columns + c * column_stride, column_stride, d,
                      out + c * out_stride, out_stride);
}

}  // namespace
}  // namespace hullft
