// Selection for every query of a batch, whatever selects.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "batch.h"
#include "query_pool.h"
#include "selection_output.h"

namespace hullft {

// Of a query without candidates nothing is explained: the norm of its mean target is left, and the
// sum of its targets' squares.
template <typename T, typename Output>
bool write_nothing(int64_t b, const T* query, int64_t d, int64_t n_targets, const Output& output) {
  double squared = 0, squares = 0;
  for (int64_t i = 0; i < d; ++i) {
    double mean = 0;
    for (int64_t t = 0; t < n_targets; ++t) {
      const double x = widen(query[t * d + i]);
      mean += x / double(n_targets);
      squares += x * x;
    }
    squared += mean * mean;
  }
  return output.write_nothing(b, std::sqrt(squared), squares) && std::isfinite(squares);
}

// query is [B, d] or, dense, [B, n_targets, d]. make_solver() builds a thread's solver; its
// solve(query_pool, answer) is false when an input or a product is not finite, output.write(b,
// answer) when a value is too large for the outputs. `work` is that of for_each_query.
template <typename T, typename Output, typename MakeSolver>
void select_batch(const char* op, const char* pool_name, const Pool<T>& pool, const Tensor& query,
                  const Sizes& sizes, int64_t d, double work, const Output& output,
                  const MakeSolver& make_solver) {
  const int64_t batch = query.size(0), n_targets = query.dim() == 3 ? query.size(1) : 1;
  const T* queries = data<T>(query);
  const int64_t query_stride = query.stride(0);
  struct Workspace {
    decltype(make_solver()) solver;
    std::vector<const T*> rows;
    ReadAhead<T> ahead;
    typename Output::Answer answer;
  };
  FirstFailure failure;
  for_each_query(
      batch, work, failure, [&] { return Workspace{make_solver(), {}, {}, {}}; },
      [&](Workspace& w, int64_t b) {
        const T* query_b = queries + b * query_stride;
        if (sizes[b] == 0) return write_nothing(b, query_b, d, n_targets, output);
        pool.rows(b, sizes[b], w.rows);
        std::vector<const T*>& next = w.ahead.begin(d);
        if (b + 1 < batch && !pool.is_shared()) pool.rows(b + 1, sizes[b + 1], next);
        const QueryPool<T> in{w.rows.data(), sizes[b], query_b, d, batch == 1, &w.ahead};
        return w.solver.solve(in, w.answer) && output.write(b, w.answer);
      });
  if (failure.any()) {
    const int64_t b = failure.query();
    std::vector<const T*> rows;
    pool.rows(b, sizes[b], rows);
    non_finite_error(op, pool_name, rows, queries + b * query_stride, d, b, n_targets);
  }
}

}  // namespace hullft
