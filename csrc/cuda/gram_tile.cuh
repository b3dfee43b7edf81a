// What the Gram kernels share: which tile of the lower triangle, whose rows, and where its products
// go.
#pragma once

#include "device.cuh"
#include "gram.h"
#include "gram_grid.h"

namespace hullft {

struct Tile {
  int row, column;  // first row of either operand
};

// Tile t of a lower triangle, counted row by row.
__device__ __forceinline__ Tile tile_of(int64_t t, int side) {
  int64_t i = int64_t((sqrt(8.0 * double(t) + 1.0) - 1.0) / 2.0);
  while (i * (i + 1) / 2 > t) --i;
  while ((i + 1) * (i + 2) / 2 <= t) ++i;
  return {int(i) * side, int(t - i * (i + 1) / 2) * side};
}

// Tile t of the triangle, or of the rectangle below it.
__device__ __forceinline__ Tile tile_at(const Tiles& tiles, int64_t t, int side) {
  if (t < tiles.triangle) return tile_of(t, side);
  const int64_t below = t - tiles.triangle;
  return {(tiles.strips + int(below / tiles.columns)) * side, int(below % tiles.columns) * side};
}

// The queries of a pool are its rows from `width` on. Rows past them, and a candidate out of range,
// read as row 0: their products are never used, and the solve reports the candidate.
template <typename T>
__device__ __forceinline__ const T* row_at(const GramProblem& p, int64_t b, int k) {
  const PoolView& pool = p.pool;
  const int query = k - pool.width;
  if (query >= 0 && query < p.queries)
    return static_cast<const T*>(p.query.base) + (b * p.queries + query) * p.query.stride;
  int64_t r = k < pool.width ? k : 0;
  if (pool.candidates) r = pool.candidates[b * pool.candidates_stride + r];
  if (r < 0 || r >= pool.n_rows) r = 0;
  return static_cast<const T*>(pool.base) + b * pool.batch_stride + r * pool.row_stride;
}

// Whether one of `side` rows from `first` on is a candidate of pool b, or a query.
__device__ __forceinline__ bool wants_rows(const GramProblem& p, int64_t b, int first, int side) {
  const int64_t n = p.pool.sizes ? p.pool.sizes[b] : int64_t(p.pool.width);
  const int width = p.pool.width;
  const bool has_query = first < width + p.queries && width < first + side;
  return n > 0 && (first < n || has_query);
}

__device__ __forceinline__ bool wants_tile(const GramProblem& p, int64_t b, const Tile& tile,
                                           int side) {
  const int64_t n = p.pool.sizes ? p.pool.sizes[b] : int64_t(p.pool.width);
  return tile.column < n && wants_rows(p, b, tile.row, side);
}

// Outputs of pool b, or of one share of its columns, whose products are float64.
template <typename S>
struct GramOutputs {
  S *gram, *products;
  int width, queries;

  __device__ __forceinline__ GramOutputs(const GramProblem& p, int64_t b, int share = -1)
      : gram(static_cast<S*>(p.gram) + b * p.pool.width * p.pool.width),
        products(static_cast<S*>(p.products) + b * p.queries * p.pool.width),
        width(p.pool.width),
        queries(p.queries) {
    if (share < 0) return;
    const int64_t rows = width + queries;
    gram = static_cast<S*>(p.partial) + (b * p.shares.count + share) * rows * width;
    products = gram + int64_t(width) * width;
  }

  // Columns of row i in the lower triangle. Rows from `width` on have products with the queries.
  __device__ __forceinline__ int columns_of(int i) const {
    if (i >= width + queries) return 0;
    return i < width ? i + 1 : width;
  }
  __device__ __forceinline__ S* row_at(int i) const {
    return i < width ? gram + int64_t(i) * width : products + int64_t(i - width) * width;
  }

  // Not by columns_of: with it nvcc 13.0 spills registers.
  __device__ __forceinline__ void put_lower(int i, int j, S value) const {
    if (j <= i && j < width && i < width + queries) row_at(i)[j] = value;
  }

  // An element of the lower triangle and its mirror image.
  __device__ __forceinline__ void put(int i, int j, S value) const {
    put_lower(i, j, value);
    if (j < i && i < width) gram[int64_t(j) * width + i] = value;
  }
};

// What a block multiplies.
struct BlockShare {
  int64_t pool, part;   // part of the blocks of a pool
  int share;            // -1: there are none
  int64_t first, last;  // columns

  __device__ __forceinline__ BlockShare(const GramProblem& p, int64_t blocks_of_pool, bool is_long)
      : pool(int64_t(blockIdx.x) / blocks_of_pool),
        part(int64_t(blockIdx.x) % blocks_of_pool),
        share(-1),
        first(0),
        last(p.pool.d) {
    if (!is_long) return;
    share = int(pool % p.shares.count), pool /= p.shares.count;
    first = share * p.shares.columns;
    if (last > first + p.shares.columns) last = first + p.shares.columns;
  }
};

}  // namespace hullft
