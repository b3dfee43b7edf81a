// What every selection kernel writes for a query.
#pragma once

#include "frank_wolfe.h"
#include "reduce.cuh"
#include "rows.cuh"

namespace hullft {

// Below 0 only by rounding; NaN stays.
template <typename S>
__device__ __forceinline__ void write_gap(int64_t query, S gap, const FwOutputs& out) {
  static_cast<S*>(out.gap)[query] = gap < S(0) ? S(0) : gap;
}

template <typename S>
__device__ __forceinline__ void write_scalars(int64_t query, int support_size, S residual, S gap,
                                              int num_iter, const FwOutputs& out) {
  out.support_size[query] = support_size;
  out.num_iter[query] = num_iter;
  static_cast<S*>(out.residual)[query] = residual;
  write_gap<S>(query, gap, out);
}

// No rows, the first of them `times` times.
template <typename S>
__device__ __forceinline__ void write_no_rows(int64_t query, int n_select, S weight, int times,
                                              const FwOutputs& out, const BlockThread& me) {
  const int64_t first = query * n_select;
  for (int i = me.thread; i < n_select; i += me.n_threads) {
    static_cast<S*>(out.weights)[first + i] = weight;
    if (!out.indices) continue;
    out.indices[first + i] = -1;
    out.counts[first + i] = i == 0 ? times : 0;
  }
}

// An error without a synchronisation: nothing selected, NaN, -1 steps. The counts still sum to
// n_select, on index -1, so that a multiset made of them holds only -1.
template <typename S>
__device__ __forceinline__ void write_failure(int64_t query, int n_select, const FwOutputs& out,
                                              const BlockThread& me) {
  write_no_rows(query, n_select, S(NAN), n_select, out, me);
  if (me.thread == 0) write_scalars<S>(query, 0, S(NAN), S(NAN), -1, out);
}

// A query without candidates: no support, and the norm of its mean target is left. Gives the sum of
// its targets' squares. In float64, as on the CPU: no square overflows that need not.
template <typename S>
__device__ __forceinline__ double write_nothing(const PoolView& pool, const QueryView& queries,
                                                int64_t query, int n_targets, int n_select,
                                                const FwOutputs& out, BlockScratch& scratch,
                                                const BlockThread& me) {
  double squared = 0, squares = 0;
  with_rows<S>(pool, query, 0, [&](const auto& rows) {
    const auto* q = query_at(rows, queries, query);
    for (int64_t i = me.thread; i < rows.d; i += me.n_threads) {
      double mean = 0;
      for (int t = 0; t < n_targets; ++t) {
        const double x = double(widen_to<S>(q[t * rows.d + i]));
        mean += x / double(n_targets);
        squares += x * x;
      }
      squared += mean * mean;
    }
  });
  const S residual = S(sqrt(block_sum(squared, scratch, me)));
  squares = block_sum(squares, scratch, me);
  if (!finite(residual) || !finite(squares)) {
    write_failure<S>(query, n_select, out, me);
    return squares;
  }
  write_no_rows(query, n_select, S(0), 0, out, me);
  if (me.thread == 0) write_scalars<S>(query, 0, residual, S(0), 0, out);
  return squares;
}

}  // namespace hullft
