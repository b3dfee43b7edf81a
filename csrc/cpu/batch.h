// Runs one body a query over a batch, and turns the first query that failed into an error.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "pool.h"

namespace hullft {

// Remembers the lowest failing query, whatever the order in which threads meet them.
class FirstFailure {
 public:
  void note(int64_t b) {
    int64_t seen = first_.load();
    while (b < seen && !first_.compare_exchange_weak(seen, b)) {
    }
  }
  bool any() const { return first_.load() != kNone; }
  int64_t query() const { return first_.load(); }

 private:
  static constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> first_{kNone};
};

// What a query's steps and counts take besides products of rows, in multiply-adds of these: 13 us.
constexpr double kStepsWork = 3 << 18;

// Multiply-adds below which a batch is not worth sharing, about 1 ms of one thread. Threads that
// are asleep, or whose core another process uses, start only when the system lets them, up to 16 ms
// later, and the batch waits for the last. Two threads beside a busy core took 16 ms for 2 queries
// of 30 rows (d = 384), which one thread selects in 39 us.
constexpr double kParallelBatch = 3 << 24;

// make() builds a thread's workspace; body(workspace, b) is false when query b failed. `work`:
// multiply-adds of the whole batch. A batch of one runs on the calling thread, so that the body can
// share its rows among the others.
template <typename Make, typename Body>
void for_each_query(int64_t batch, double work, FirstFailure& failure, const Make& make,
                    const Body& body) {
  const auto run = [&](int64_t begin, int64_t end) {
    auto workspace = make();
    for (int64_t b = begin; b < end; ++b)
      if (!body(workspace, b)) failure.note(b);
  };
  if (batch == 1 || work < kParallelBatch)
    run(0, batch);
  else
    torch::stable::parallel_for(0, batch, 1, run);
}

template <typename T>
bool all_finite(const T* x, int64_t d) {
  for (int64_t i = 0; i < d; ++i)
    if (!std::isfinite(widen(x[i]))) return false;
  return true;
}

// Says what was not finite for query b, whose vectors are one after the other. Reached only after
// it failed, so it may read everything again.
template <typename T>
[[noreturn]] void non_finite_error(const SelectionArguments& arguments, const Pool<T>& pool,
                                   int64_t size, const T* query, int64_t b) {
  const char *op = arguments.op, *pool_name = arguments.pool_name;
  const int64_t n_targets = arguments.query.dim() == 3 ? arguments.query.size(1) : 1;
  if (!all_finite(query, arguments.dim * n_targets))
    value_error(op, arguments.query_name, "[", b, "] has NaN or infinity");
  std::vector<const T*> rows;
  pool.rows(b, size, rows);
  for (int64_t k = 0; k < size; ++k)
    if (!all_finite(rows[size_t(k)], arguments.dim))
      value_error(op, pool_name, " has NaN or infinity in row ", pool.row(b, k), " for query ", b);
  value_error(op, pool_name, " and ", arguments.query_name, "[", b,
              "] are finite but their inner products overflow");
}

}  // namespace hullft
