// A solver whose buffers outlive the call. Otherwise each call would get new pages from the system,
// which takes longer than a small query.
#pragma once

#include <algorithm>
#include <memory>

#include "query_pool.h"

namespace hullft {

// The calling thread's own Solver, which only one ThreadSolver may use at a time. One that has seen
// a pool whose rows, Gram matrix or single row in float64 take more than kMostBytes is freed.
template <typename Solver, typename Options>
class ThreadSolver {
 public:
  explicit ThreadSolver(const Options& options) : options_(options) {
    if (!of_thread()) of_thread() = std::make_unique<Solver>();
    solver_ = of_thread().get();
  }
  ThreadSolver(const ThreadSolver&) = delete;
  ThreadSolver& operator=(const ThreadSolver&) = delete;
  ~ThreadSolver() {
    if (largest_ > kMostBytes) of_thread().reset();
  }

  template <typename T, typename Answer>
  bool solve(const QueryPool<T>& in, Answer& answer) {
    // In double, so that products cannot overflow.
    const double rows = double(in.n_rows), d = double(in.d);
    const double widest = std::max(d * sizeof(T), rows * sizeof(double));
    largest_ = std::max({largest_, rows * widest, d * sizeof(double)});
    return solver_->solve(options_, in, answer);
  }

 private:
  static constexpr double kMostBytes = 1 << 23;

  static std::unique_ptr<Solver>& of_thread() {
    thread_local std::unique_ptr<Solver> solver;
    return solver;
  }

  Options options_;
  Solver* solver_;
  double largest_ = 0;
};

}  // namespace hullft
