// What both Frank-Wolfe solvers end with: the residual from the rows, the support in order, its
// counts.
#pragma once

#include "frank_wolfe.h"
#include "fw_state.cuh"
#include "rows.cuh"
#include "selection_outputs.cuh"
#include "warp_integerize.cuh"

namespace hullft {

// ||q - X^T w|| from the rows of the support: near 0 the recurrence loses half its digits. A thread
// has four rows under way, and a sum for each.
template <typename R, typename S>
__device__ __forceinline__ S exact_residual(const FwProblem& p, int64_t query, int n,
                                            const FwTable<S>& table, int support_size,
                                            BlockScratch& scratch, const BlockThread& me) {
  const int m = support_size;
  S squared = 0;
  with_rows<R>(p.pool, query, n, [&](const auto& rows) {
    const auto* q = query_at(rows, p.query, query);
    for (int64_t i = me.thread; i < rows.d; i += me.n_threads) {
      S sums[kTileRows] = {};
#pragma unroll 1  // nvcc 13.0 would unroll it: fw_kernel would spill
      for (int j = 0; j < m; j += kTileRows) {
#pragma unroll
        for (int r = 0; r < kTileRows; ++r) {
          const int entry = j + r < m ? j + r : m - 1;
          const S w = j + r < m ? table.weight[entry] : S(0);
          sums[r] += w * widen_to<S>(rows[table.atom[entry]][i]);
        }
      }
      const S r = widen_to<S>(q[i]) - ((sums[0] + sums[1]) + (sums[2] + sums[3]));
      squared += r * r;
    }
  });
  return S(sqrt(block_sum(squared, scratch, me)));
}

template <typename S>
struct FwAnswer {
  FwTable<S> table;
  CountArrays counts;
  S* spare;  // memory that is free after the steps
  int64_t n_spare;
  int support_size;

  __device__ __forceinline__ int size(const FwProblem& p) const {
    return support_size < p.max_support ? support_size : p.max_support;
  }
};

// order[r] is the entry of rank r: largest weight first, lower index first on equal weights.
template <typename S>
__device__ __forceinline__ void sort_support(const FwTable<S>& table, int support_size,
                                             const BlockThread& me) {
  for (int j = me.thread; j < support_size; j += me.n_threads) {
    const int atom = table.atom[j];
    const S w = table.weight[j];
    int rank = 0;
    for (int i = 0; i < support_size; ++i) {
      const int other = table.atom[i];
      const S v = table.weight[i];
      rank += v > w || (v == w && other < atom);
    }
    table.order[rank] = j;
  }
  __syncthreads();
}

// The support's rows of the Gram matrix, atoms by rank. Column: const S* operator()(int entry).
template <typename S, typename Column>
struct SupportRows {
  static constexpr bool kAtOnce = false;
  const FwTable<S>& table;
  const Column& column;

  __device__ __forceinline__ const S* row(int i) const { return column(table.order[i]); }
  __device__ __forceinline__ int at(int j) const { return table.atom[table.order[j]]; }
};

// Indices, weights and counts. B: S operator()(int atom), its product with the query, which may lie
// in the spare memory. Column: its column of the Gram matrix.
template <typename S, typename B, typename Column>
__device__ __forceinline__ void write_answer(const FwProblem& p, int64_t query,
                                             const FwAnswer<S>& answer, const B& b,
                                             const Column& column, const FwOutputs& out,
                                             const BlockThread& me) {
  const FwTable<S>& table = answer.table;
  const CountArrays& counts = answer.counts;
  const int m = answer.size(p);
  sort_support(table, answer.support_size, me);
  const SupportRows<S, Column> rows{table, column};
  const auto weight = [&](int i) { return double(table.weight[table.order[i]]); };
  for (int i = me.thread; i < m; i += me.n_threads) counts.gain[i] = double(b(rows.at(i)));
  count_units(rows, weight, counts, m, p.n_select, p.swap_passes, answer.spare, answer.n_spare, me);
  const int64_t first = query * p.n_select;
  for (int i = me.thread; i < p.n_select; i += me.n_threads) {
    out.indices[first + i] = i < m ? rows.at(i) : -1;
    out.counts[first + i] = i < m ? counts.counts[i] : 0;
    static_cast<S*>(out.weights)[first + i] = i < m ? table.weight[table.order[i]] : S(0);
  }
}

}  // namespace hullft
