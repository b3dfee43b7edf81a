// What both Frank-Wolfe solvers end with: the residual from the rows, the support in order, its
// counts.
#pragma once

#include "block_integerize.cuh"
#include "frank_wolfe.h"
#include "fw_state.cuh"
#include "rows.cuh"
#include "selection_outputs.cuh"

namespace hullft {

// ||q - X^T w|| from the rows of the entries in `table.order`: near 0 the recurrence loses half its
// digits. Four rows are read at a time, each into a sum of its own.
template <typename S>
__device__ __forceinline__ S exact_residual(const FwProblem& p, int64_t query, int n,
                                            const FwTable<S>& table, int support_size,
                                            BlockScratch& scratch, const BlockThread& me) {
  const int m = support_size;
  S squared = 0;
  with_rows<S>(p.pool, query, n, [&](const auto& rows) {
    const auto* q = query_at(rows, p.query, query);
    for (int64_t i = me.thread; i < rows.d; i += me.n_threads) {
      S sums[kTileRows] = {};
#pragma unroll 1
      for (int j = 0; j < m; j += kTileRows) {
#pragma unroll
        for (int r = 0; r < kTileRows; ++r) {
          const int entry = table.order[j + r < m ? j + r : m - 1];
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
  int n_entries, support_size;

  __device__ __forceinline__ int size(const FwProblem& p) const {
    return support_size < p.n_select ? support_size : p.n_select;
  }
};

// order[r] is the entry of rank r: largest weight first, lower index first on equal weights.
template <typename S>
__device__ __forceinline__ void sort_support(const FwTable<S>& table, int n_entries,
                                             const BlockThread& me) {
  for (int j = me.thread; j < n_entries; j += me.n_threads) {
    const int atom = table.atom[j];
    if (atom < 0) continue;
    const S w = table.weight[j];
    int rank = 0;
    for (int i = 0; i < n_entries; ++i) {
      const int other = table.atom[i];
      if (other < 0) continue;
      const S v = table.weight[i];
      rank += v > w || (v == w && other < atom);
    }
    table.order[rank] = j;
  }
  __syncthreads();
}

// Indices, weights and counts. B: S operator()(int atom), its product with the query. Column:
// const S* operator()(int entry), its column of the Gram matrix.
template <typename S, typename B, typename Column>
__device__ __forceinline__ void write_answer(const FwProblem& p, int64_t query,
                                             const FwAnswer<S>& answer, const B& b,
                                             const Column& column, const FwOutputs& out,
                                             BlockScratch& scratch, const BlockThread& me) {
  const FwTable<S>& table = answer.table;
  const CountArrays& counts = answer.counts;
  const int m = answer.size(p);
  sort_support(table, answer.n_entries, me);
  const auto entry = [&](int i) { return table.order[i]; };
  const auto atom = [&](int i) { return table.atom[entry(i)]; };
  const auto weight = [&](int i) { return double(table.weight[entry(i)]); };
  const auto gram = [&](int i, int j) { return double(column(entry(i))[atom(j)]); };
  for (int i = me.thread; i < m; i += me.n_threads) counts.b[i] = double(b(atom(i)));
  __syncthreads();
  BlockIntegerizer integerizer(gram, counts, m, p.n_select, scratch, me);
  integerizer.run(weight, p.swap_passes);
  __syncthreads();
  const int64_t first = query * p.n_select;
  for (int i = me.thread; i < p.n_select; i += me.n_threads) {
    out.indices[first + i] = i < m ? atom(i) : -1;
    out.counts[first + i] = i < m ? counts.counts[i] : 0;
    static_cast<S*>(out.weights)[first + i] = i < m ? table.weight[entry(i)] : S(0);
  }
}

}  // namespace hullft
