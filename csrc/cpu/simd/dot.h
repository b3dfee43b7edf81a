// Register-tiled dot products of pool rows with a vector, in float64.
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

// Two sums a lane, over even and odd vectors, whatever the number of rows: a value must not depend
// on the tile it falls in, or equal rows would cease to tie. X is T or float64.
template <int kRows, typename T, typename X>
inline void dot_tile(const T* const* rows, const X* x, int64_t d, double* out) {
  VecD even[kRows] = {}, odd[kRows] = {};
  const auto add = [rows, x](VecD(&sums)[kRows], int64_t i) {
    const VecD x_i = load_doubles(x + i);
    for (int r = 0; r < kRows; ++r) sums[r] += load_doubles(rows[r] + i) * x_i;
  };
  const int64_t whole = d / kDoubles * kDoubles;
  int64_t i = 0;
  for (; i + 2 * kDoubles <= whole; i += 2 * kDoubles) {
    add(even, i);
    add(odd, i + kDoubles);
  }
  if (i < whole) add(even, i);
  if (whole < d) {
    const VecD last = load_tail<double>(x, d);
    for (int r = 0; r < kRows; ++r) odd[r] += load_tail<double>(rows[r], d) * last;
  }
  for (int r = 0; r < kRows; ++r) out[r] = sum_lanes(even[r] + odd[r]);
}

// Rows k .. n_rows, in tiles of kRows and then of half as many.
template <int kRows, typename T, typename X>
inline void dot_tiles(const T* const* rows, int64_t k, int64_t n_rows, const X* x, int64_t d,
                      double* out) {
  for (; k + kRows <= n_rows; k += kRows) dot_tile<kRows>(rows + k, x, d, out + k);
  if constexpr (kRows > 1) dot_tiles<kRows / 2>(rows, k, n_rows, x, d, out);
}

template <typename T, typename X>
void dot_kernel(const T* const* rows, int64_t n_rows, const X* x, int64_t d, double* out) {
  dot_tiles<kTileRows>(rows, 0, n_rows, x, d, out);
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
