// What the Gram kernels share: which tile of the lower triangle, whose rows, and where its products
// go.
#pragma once

#include "device.cuh"
#include "gram.h"

namespace hullft {

struct Tile {
  int row, column;  // first row of either operand
};

inline int64_t tiles_of(int rows, int side) {
  const int64_t strips = (int64_t(rows) + side - 1) / side;
  return strips * (strips + 1) / 2;
}

// Tile t of the lower triangle, counted row by row.
__device__ __forceinline__ Tile tile_of(int64_t t, int side) {
  int64_t i = int64_t((sqrt(8.0 * double(t) + 1.0) - 1.0) / 2.0);
  while (i * (i + 1) / 2 > t) --i;
  while ((i + 1) * (i + 2) / 2 <= t) ++i;
  return {int(i) * side, int(t - i * (i + 1) / 2) * side};
}

// Row `width` is the query. What is past it, and a candidate out of range, reads as row 0: its
// products are never used, and the solve reports it.
template <typename T>
__device__ __forceinline__ const T* row_at(const GramProblem& p, int64_t query, int k) {
  const PoolView& pool = p.pool;
  if (k == pool.width && p.query.base)
    return static_cast<const T*>(p.query.base) + query * p.query.stride;
  int64_t r = k < pool.width ? k : 0;
  if (pool.candidates) r = pool.candidates[query * pool.candidates_stride + r];
  if (r < 0 || r >= pool.n_rows) r = 0;
  return static_cast<const T*>(pool.base) + query * pool.batch_stride + r * pool.row_stride;
}

// Whether the query sees one of `side` rows from `first` on, or is one of them.
__device__ __forceinline__ bool wants_rows(const GramProblem& p, int64_t query, int first,
                                           int side) {
  const int64_t n = p.pool.sizes ? p.pool.sizes[query] : int64_t(p.pool.width);
  const bool is_query = p.query.base && first <= p.pool.width && p.pool.width < first + side;
  return n > 0 && (first < n || is_query);
}

__device__ __forceinline__ bool wants_tile(const GramProblem& p, int64_t query, const Tile& tile,
                                           int side) {
  const int64_t n = p.pool.sizes ? p.pool.sizes[query] : int64_t(p.pool.width);
  return tile.column < n && wants_rows(p, query, tile.row, side);
}

// Of one query.
template <typename S>
struct GramOutputs {
  S *gram, *products;
  int width;

  __device__ __forceinline__ GramOutputs(const GramProblem& p, int64_t query)
      : gram(static_cast<S*>(p.gram) + query * p.pool.width * p.pool.width),
        products(p.query.base ? static_cast<S*>(p.products) + query * p.pool.width : nullptr),
        width(p.pool.width) {}

  // Element (i, j) of the lower triangle. Row `width` has the products with the query.
  __device__ __forceinline__ void put_lower(int i, int j, S value) const {
    if (j > i || i > width || j >= width) return;
    if (i < width)
      gram[int64_t(i) * width + j] = value;
    else if (products)
      products[j] = value;
  }

  // Of what lies above the diagonal.
  __device__ __forceinline__ void put_upper(int i, int j, S value) const {
    if (i < j && j < width) gram[int64_t(i) * width + j] = value;
  }

  // An element of the lower triangle and its mirror image.
  __device__ __forceinline__ void put(int i, int j, S value) const {
    put_lower(i, j, value);
    put_upper(j, i, value);
  }
};

}  // namespace hullft
