// The rows of one query's pool, and their inner products with a vector: a warp takes four rows at a
// time, so that the vector is read once for four rows and 2 KB are in flight.
#pragma once

#include "load.cuh"
#include "pool_view.h"
#include "reduce.cuh"

namespace hullft {

constexpr int kTileRows = 4;
constexpr int kColumnsOfSum = 1024;  // after which float32 sums go into float64

template <typename T>
struct Rows {
  const T* base;
  int64_t stride;
  const int64_t* picked;
  int n;  // as many as the query sees
  int64_t d;
  bool vectors;

  __device__ __forceinline__ const T* operator[](int k) const {
    return base + (picked ? picked[k] : int64_t(k)) * stride;
  }
};

template <typename T>
__device__ __forceinline__ Rows<T> rows_of(const PoolView& pool, int64_t query, int n) {
  return {static_cast<const T*>(pool.base) + query * pool.batch_stride,
          pool.row_stride,
          pool.candidates ? pool.candidates + query * pool.candidates_stride : nullptr,
          n,
          pool.d,
          pool.vectors};
}

template <typename T>
__device__ __forceinline__ const T* query_at(const Rows<T>&, const QueryView& queries,
                                             int64_t query) {
  return static_cast<const T*>(queries.base) + query * queries.stride;
}

// body(Rows<T>) for the storage type. R: of the outputs, float64 for float64 pools alone, so that
// an instantiation holds no other types.
template <typename R, typename Body>
__device__ __forceinline__ void with_rows(const PoolView& pool, int64_t query, int n,
                                          const Body& body) {
  if constexpr (sizeof(R) == 8) {
    body(rows_of<double>(pool, query, n));
  } else {
    switch (pool.storage) {
      case Storage::kBFloat16:
        return body(rows_of<BFloat16>(pool, query, n));
      case Storage::kFloat16:
        return body(rows_of<Float16>(pool, query, n));
      default:
        return body(rows_of<float>(pool, query, n));
    }
  }
}

// Whether the query has no candidates, which is no error of a selection.
__device__ __forceinline__ bool sees_nothing(const PoolView& pool, int64_t query) {
  return pool.sizes && pool.sizes[query] == 0;
}

// How many candidates the query sees, 0 when its size or a candidate is out of range. All threads
// of the block call it and get the same answer.
__device__ __forceinline__ int checked_size(const PoolView& pool, int64_t query,
                                            const BlockThread& me) {
  const int64_t n = pool.sizes ? pool.sizes[query] : int64_t(pool.width);
  bool bad = n < 1 || n > pool.width;
  if (!bad && pool.candidates) {
    const int64_t* picked = pool.candidates + query * pool.candidates_stride;
    for (int64_t k = me.thread; k < n; k += me.n_threads)
      bad = bad || picked[k] < 0 || picked[k] >= pool.n_rows;
  }
  return __syncthreads_or(bad) ? 0 : int(n);
}

// One lane's share of the inner products of kTileRows rows with x. A row's sum does not depend on
// the tile it falls in, or equal rows would cease to tie.
template <typename S, typename T, typename X>
__device__ __forceinline__ void dot_lane(const T* const (&rows)[kTileRows], const X* x, int64_t d,
                                         bool vectors, int lane, double (&sums)[kTileRows]) {
  constexpr int kStep = kVector<T>;
  const int64_t whole = vectors ? d / kStep * kStep : 0;
  int64_t i = int64_t(lane) * kStep;
  while (i < whole) {
    const int64_t end = i + kColumnsOfSum < whole ? i + kColumnsOfSum : whole;
    S of_columns[kTileRows] = {};
#pragma unroll 1  // four rows are enough in flight; unrolled it spills (nvcc 13.0)
    for (; i < end; i += kWarp * kStep) {
      S wide[kTileRows][kStep], other[kStep];
#pragma unroll
      for (int r = 0; r < kTileRows; ++r) load_words<kStep>(rows[r] + i, wide[r]);
      load_words<kStep>(x + i, other);
#pragma unroll
      for (int r = 0; r < kTileRows; ++r)
#pragma unroll
        for (int j = 0; j < kStep; ++j) of_columns[r] += wide[r][j] * other[j];
    }
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) sums[r] += double(of_columns[r]);
  }
  for (i = whole + lane; i < d; i += kWarp)
#pragma unroll
    for (int r = 0; r < kTileRows; ++r)
      sums[r] += double(widen_to<S>(rows[r][i]) * widen_to<S>(x[i]));
}

// out[k] = <rows[k], x> for k in first .. last - 1, by all warps of the block. The caller
// synchronises.
template <typename S, typename T, typename X>
__device__ __forceinline__ void multiply_rows(const Rows<T>& rows, int first, int last, const X* x,
                                              S* out, const BlockThread& me) {
  for (int k = first + me.warp * kTileRows; k < last; k += me.n_warps * kTileRows) {
    const T* tile[kTileRows];
    double sums[kTileRows] = {};
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) tile[r] = rows[k + r < last ? k + r : last - 1];
    dot_lane<S>(tile, x, rows.d, rows.vectors, me.lane, sums);
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) {
      const S total = warp_sum(S(sums[r]));
      if (me.lane == 0 && k + r < last) out[k + r] = total;
    }
  }
}

// The thread's share of the square of a vector of n numbers.
template <typename S, typename T>
__device__ __forceinline__ S square_of(const T* x, int64_t n, const BlockThread& me) {
  S square = 0;
  for (int64_t i = me.thread; i < n; i += me.n_threads)
    square += widen_to<S>(x[i]) * widen_to<S>(x[i]);
  return square;
}

// x - x is 0 for finite x alone.
template <typename S>
__device__ __forceinline__ bool finite(S x) {
  return x - x == S(0);
}

}  // namespace hullft
