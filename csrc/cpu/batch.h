// Runs one body a query over a batch, and turns the first query that failed into an error.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "pool.h"

namespace hullft {

// What a query's steps and counts take besides products of rows, in multiply-adds of these: 13 us.
constexpr double kStepsWork = 3 << 18;

// Multiply-adds below which a batch is not worth sharing, about 1 ms of one thread. Threads that
// are asleep, or whose core another process uses, start only when the system lets them, up to 16 ms
// later, and the batch waits for the last. Two threads beside a busy core took 16 ms for 2 queries
// of 30 rows (d = 384), which one thread selects in 39 us.
constexpr double kParallelBatch = 3 << 24;

// make() builds a thread's workspace; body(workspace, b) is false when query b failed. Gives the
// first that did. `work`: multiply-adds of the whole batch. A batch of one runs on the calling
// thread, so that the body can share its rows among the others.
template <typename Make, typename Body>
std::optional<int64_t> for_each_query(int64_t batch, double work, const Make& make,
                                      const Body& body) {
  std::atomic<int64_t> first{batch};  // that failed, whatever the order in which threads meet them
  const auto run = [&](int64_t begin, int64_t end) {
    auto workspace = make();
    for (int64_t b = begin; b < end; ++b) {
      if (body(workspace, b)) continue;
      int64_t seen = first.load();
      while (b < seen && !first.compare_exchange_weak(seen, b)) {
      }
    }
  };
  if (batch == 1 || work < kParallelBatch)
    run(0, batch);
  else
    torch::stable::parallel_for(0, batch, 1, run);
  return first < batch ? std::optional(first.load()) : std::nullopt;
}

template <typename T>
bool all_finite(const T* x, int64_t d) {
  for (int64_t i = 0; i < d; ++i)
    if (!std::isfinite(widen(x[i]))) return false;
  return true;
}

// Names the value of query b, which has `size` rows, that is not finite. Reached only after the
// query failed, so it may read everything again.
template <typename T>
[[noreturn]] void non_finite_error(const SelectionArguments& arguments, int64_t size, int64_t b) {
  const char *op = arguments.op, *pool_name = arguments.pool_name;
  const Tensor query = dense_query(arguments);
  if (!all_finite(data<T>(query) + b * query.stride(0), arguments.dim * arguments.n_targets()))
    value_error(op, arguments.query_name, "[", b, "] has NaN or infinity");
  const Pool<T> pool(arguments);
  std::vector<const T*> rows;
  pool.rows(b, size, rows);
  for (int64_t k = 0; k < size; ++k)
    if (!all_finite(rows[size_t(k)], arguments.dim))
      value_error(op, pool_name, " has NaN or infinity in row ", pool.row(b, k), " for query ", b);
  value_error(op, pool_name, " and ", arguments.query_name, "[", b,
              "] are finite but their inner products or weights overflow");
}

}  // namespace hullft
