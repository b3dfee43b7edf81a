// Selection for every query of a batch, whatever selects.
#pragma once

#include <vector>

#include "batch.h"
#include "query_pool.h"
#include "selection_output.h"

namespace hullft {

// query is [B, d] or, dense, [B, n_targets, d]. make_solver() builds a thread's solver; its
// solve(query_pool, answer) is false when an input or a product is not finite, output.write(b,
// answer) when a value is too large for the outputs.
template <typename T, typename Output, typename MakeSolver>
void select_batch(const char* op, const char* pool_name, const Pool<T>& pool, const Tensor& query,
                  const Sizes& sizes, int64_t d, const Output& output,
                  const MakeSolver& make_solver) {
  const int64_t batch = query.size(0);
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
      batch, failure, [&] { return Workspace{make_solver(), {}, {}, {}}; },
      [&](Workspace& w, int64_t b) {
        pool.rows(b, sizes[b], w.rows);
        std::vector<const T*>& next = w.ahead.begin(d);
        if (b + 1 < batch && !pool.is_shared()) pool.rows(b + 1, sizes[b + 1], next);
        const QueryPool<T> in{w.rows.data(), sizes[b], queries + b * query_stride, d,
                              batch == 1,    &w.ahead};
        return w.solver.solve(in, w.answer) && output.write(b, w.answer);
      });
  if (failure.any()) {
    const int64_t b = failure.query();
    std::vector<const T*> rows;
    pool.rows(b, sizes[b], rows);
    non_finite_error(op, pool_name, rows, queries + b * query_stride, d, b,
                     query.dim() == 3 ? query.size(1) : 1);
  }
}

}  // namespace hullft
