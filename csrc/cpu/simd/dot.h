// Register-tiled dot products of pool rows with columns, in float64 or float32.
#pragma once

#include "kernels.h"
#include "real.h"

namespace hullft {
namespace {

// Enough accumulators to hide the latency of a multiply-add, and few enough that they and their
// operands fit the registers: 16 of AVX2 and SSE2, 32 of AVX-512 and NEON.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileSums = 16;
#else
constexpr int kTileSums = 8;
#endif

// Two sums a lane for one product a row, over even and odd vectors, and one for more, whatever the
// number of rows: a value must not depend on the tile it falls in, or equal rows would cease to
// tie. With kSquares, out[kColumns] gets the rows' products with themselves. Writes out[.][k ...].
template <typename T, typename R, int kRows, int kColumns, bool kSquares>
inline void dot_tile(const T* const* rows, const R* columns, int64_t column_stride, int64_t d,
                     R* const* out, int64_t k) {
  using V = Vector<R>;
  constexpr int kProducts = kColumns + kSquares, kChains = kProducts == 1 ? 2 : 1;
  V even[kProducts][kRows] = {}, odd[kProducts][kRows] = {};
  const auto add = [columns, column_stride](V(&sums)[kProducts][kRows], const T* const* from,
                                            int64_t i, int64_t column_i) {
    for (int r = 0; r < kRows; ++r) {
      V x = load<R>(from[r] + i);
      if constexpr (kProducts > 1) x = rounded(x);  // one load for all of its products
      for (int c = 0; c < kColumns; ++c)
        sums[c][r] += x * load<R>(columns + c * column_stride + column_i);
      if constexpr (kSquares) sums[kColumns][r] += x * x;
    }
  };
  const int64_t whole = d / kLanes<R> * kLanes<R>;
  int64_t i = 0;
  for (; i + kChains * kLanes<R> <= whole; i += kChains * kLanes<R>) {
    add(even, rows, i, i);
    if constexpr (kChains == 2) add(odd, rows, i + kLanes<R>, i + kLanes<R>);
  }
  if (i < whole) add(even, rows, i, i);
  if (whole < d) {
    T last[kRows][kLanes<R>] = {};
    const T* from[kRows];
    for (int r = 0; r < kRows; ++r) {
      std::memcpy(last[r], rows[r] + whole, size_t(d - whole) * sizeof(T));
      from[r] = last[r];
    }
    add(odd, from, 0, whole);
  }
  for (int c = 0; c < kProducts; ++c)
    for (int r = 0; r < kRows; ++r) out[c][k + r] = sum_lanes(even[c][r] + odd[c][r]);
}

// Rows k .. n_rows, in tiles of kRows and then of half as many.
template <typename T, typename R, int kRows, int kColumns, bool kSquares>
inline void dot_tiles(const T* const* rows, int64_t k, int64_t n_rows, const R* columns,
                      int64_t column_stride, int64_t d, R* const* out) {
  for (; k + kRows <= n_rows; k += kRows)
    dot_tile<T, R, kRows, kColumns, kSquares>(rows + k, columns, column_stride, d, out, k);
  if constexpr (kRows > 1)
    dot_tiles<T, R, kRows / 2, kColumns, kSquares>(rows, k, n_rows, columns, column_stride, d, out);
}

template <typename T, typename R, int kColumns, bool kSquares>
inline void dot_columns(const T* const* rows, int64_t n_rows, const R* columns,
                        int64_t column_stride, int64_t d, R* const* out) {
  constexpr int kRows = kTileSums / 2;
  dot_tiles<T, R, kRows, kColumns, kSquares>(rows, 0, n_rows, columns, column_stride, d, out);
}

template <typename T, typename R>
void dot_rows_kernel(const T* const* rows, int64_t n_rows, const R* columns, int64_t n_columns,
                     int64_t d, R* const* out) {
  const int64_t stride = padded(d);
  int64_t c = 0;
  for (; c + 2 <= n_columns; c += 2)
    dot_columns<T, R, 2, false>(rows, n_rows, columns + c * stride, stride, d, out + c);
  if (c < n_columns)
    dot_columns<T, R, 1, false>(rows, n_rows, columns + c * stride, stride, d, out + c);
}

template <typename T>
void dot_and_square_kernel(const T* const* rows, int64_t n_rows, const float* column, int64_t d,
                           float* out, float* squares) {
  float* const both[] = {out, squares};
  dot_columns<T, float, 1, true>(rows, n_rows, column, 0, d, both);
}

}  // namespace
}  // namespace hullft
