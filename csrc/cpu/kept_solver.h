// A solver whose buffers outlive the call: without that each call would get new pages from the
// system, which takes longer than a small query.
#pragma once

#include <algorithm>
#include <memory>

#include "query_pool.h"

namespace hullft {

// The calling thread's own Solver, which only one KeptSolver may use at a time. One that has seen a
// pool whose rows, Gram matrix or single row in float64 take more than kKeptBytes is not kept.
template <typename Solver, typename Options>
class KeptSolver {
 public:
  explicit KeptSolver(const Options& options) : options_(options) {
    if (!kept()) kept() = std::make_unique<Solver>();
    solver_ = kept().get();
  }
  KeptSolver(const KeptSolver&) = delete;
  KeptSolver& operator=(const KeptSolver&) = delete;
  ~KeptSolver() {
    if (largest_ > kKeptBytes) kept().reset();
  }

  template <typename T, typename Answer>
  bool solve(const QueryPool<T>& in, Answer& answer) {
    // In double, in which no product of sizes overflows.
    const double rows = double(in.n_rows), d = double(in.d);
    const double widest = std::max(d * sizeof(T), rows * sizeof(double));
    largest_ = std::max({largest_, rows * widest, d * sizeof(double)});
    return solver_->solve(options_, in, answer);
  }

 private:
  static constexpr double kKeptBytes = 1 << 23;

  static std::unique_ptr<Solver>& kept() {
    thread_local std::unique_ptr<Solver> solver;
    return solver;
  }

  Options options_;
  Solver* solver_;
  double largest_ = 0;
};

}  // namespace hullft
