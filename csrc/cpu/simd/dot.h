// Register-tiled dot products of pool rows with one column or two, in float64.
#pragma once

#include "dot_kernels.h"
#include "real.h"

namespace hullft {
namespace {

// Enough accumulators to hide the latency of a multiply-add, and few enough that they and their
// operands fit the registers: 16 of AVX2 and SSE2, 32 of AVX-512 and NEON.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 8;
#else
constexpr int kTileRows = 4;
#endif

// Two sums a lane, over even and odd vectors, whatever the numbers of rows and columns: a value
// must not depend on the tile it falls in, or equal rows would cease to tie. Writes out[c][k ...].
// C is T or float64.
template <typename T, int kRows, typename C, int kColumns>
inline void dot_tile(const T* const* rows, const C* const* columns, int64_t d, double* const* out,
                     int64_t k) {
  VecD even[kColumns][kRows] = {}, odd[kColumns][kRows] = {};
  const auto add = [rows, columns](VecD(&sums)[kColumns][kRows], int64_t i) {
    for (int r = 0; r < kRows; ++r) {
      const VecD x = load_doubles(rows[r] + i);
      for (int c = 0; c < kColumns; ++c) sums[c][r] += x * load_doubles(columns[c] + i);
    }
  };
  const int64_t whole = d / kDoubles * kDoubles;
  int64_t i = 0;
  for (; i + 2 * kDoubles <= whole; i += 2 * kDoubles) {
    add(even, i);
    add(odd, i + kDoubles);
  }
  if (i < whole) add(even, i);
  if (whole < d) {
    VecD y[kColumns];
    for (int c = 0; c < kColumns; ++c) y[c] = load_tail<double>(columns[c], d);
    for (int r = 0; r < kRows; ++r) {
      const VecD x = load_tail<double>(rows[r], d);
      for (int c = 0; c < kColumns; ++c) odd[c][r] += x * y[c];
    }
  }
  for (int c = 0; c < kColumns; ++c)
    for (int r = 0; r < kRows; ++r) out[c][k + r] = sum_lanes(even[c][r] + odd[c][r]);
}

// Rows k .. n_rows, in tiles of kRows and then of half as many.
template <typename T, int kRows, int kColumns, typename C>
inline void dot_tiles(const T* const* rows, int64_t k, int64_t n_rows, const C* const* columns,
                      int64_t d, double* const* out) {
  for (; k + kRows <= n_rows; k += kRows)
    dot_tile<T, kRows, C, kColumns>(rows + k, columns, d, out, k);
  if constexpr (kRows > 1) dot_tiles<T, kRows / 2, kColumns>(rows, k, n_rows, columns, d, out);
}

template <typename T>
void dot_rows_kernel(const T* const* rows, int64_t n_rows, const double* const* columns,
                     int64_t n_columns, int64_t d, double* const* out) {
  if (n_columns == 2)
    dot_tiles<T, kTileRows / 2, 2>(rows, 0, n_rows, columns, d, out);
  else
    dot_tiles<T, kTileRows, 1>(rows, 0, n_rows, columns, d, out);
}

template <typename T>
void dot_few_kernel(const T* const* rows, int64_t n_rows, const T* x, int64_t d, double* out) {
  dot_tiles<T, kTileRows, 1>(rows, 0, n_rows, &x, d, &out);
}

template <typename T>
void widen_kernel(const T* x, int64_t d, double* out) {
  const int64_t whole = d / kDoubles * kDoubles;
  int64_t i = 0;
  for (; i < whole; i += kDoubles) store_doubles(out + i, load_doubles(x + i));
  if (i < d) {
    store_doubles(out + i, load_tail<double>(x, d));
    i += kDoubles;
  }
  for (; i < padded(d); i += kDoubles) store_doubles(out + i, VecD{});
}

}  // namespace
}  // namespace hullft
