// What the Gram kernels share: which tile a block makes, the rows of a pool, and how the shares of
// d become a tile and its mirror image.
#pragma once

#include "device.cuh"
#include "pool_view.h"

namespace hullft {

struct Tile {
  int row, column;  // first row of either operand
};

inline int64_t tiles_of(int width, int side) {
  const int64_t rows = (int64_t(width) + side - 1) / side;
  return rows * (rows + 1) / 2;
}

// Tile t of the lower triangle, counted row by row.
__device__ __forceinline__ Tile tile_of(int64_t t, int side) {
  int64_t i = int64_t((sqrt(8.0 * double(t) + 1.0) - 1.0) / 2.0);
  while (i * (i + 1) / 2 > t) --i;
  while ((i + 1) * (i + 2) / 2 <= t) ++i;
  return {int(i) * side, int(t - i * (i + 1) / 2) * side};
}

// A row that the query does not see, or a candidate out of range, reads as row 0: its products are
// never used, and the solve reports it.
template <typename T>
__device__ __forceinline__ const T* row_at(const PoolView& pool, int64_t query, int k) {
  int64_t r = k < pool.width ? k : 0;
  if (pool.candidates) r = pool.candidates[query * pool.candidates_stride + r];
  if (r < 0 || r >= pool.n_rows) r = 0;
  return static_cast<const T*>(pool.base) + query * pool.batch_stride + r * pool.row_stride;
}

// Adds up the shares, always in the same order, and writes what lies on the diagonal or below it,
// and the same numbers above it.
template <typename S, int kShares, int kSide>
__device__ __forceinline__ void write_tile(const S (&shares)[kShares][kSide][kSide + 1],
                                           const Tile& tile, int width, S* gram) {
  const auto total = [&shares](int r, int c) {
    S sum = 0;
    for (int s = 0; s < kShares; ++s) sum += shares[s][r][c];
    return sum;
  };
  for (int e = int(threadIdx.x); e < kSide * kSide; e += int(blockDim.x)) {
    const int i = e / kSide, j = e % kSide;
    if (tile.column + j <= tile.row + i && tile.row + i < width)
      gram[int64_t(tile.row + i) * width + tile.column + j] = total(i, j);
    if (tile.column + i < tile.row + j && tile.row + j < width)
      gram[int64_t(tile.column + i) * width + tile.row + j] = total(j, i);
  }
}

}  // namespace hullft
