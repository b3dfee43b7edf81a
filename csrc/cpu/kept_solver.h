// A solver whose buffers outlive the call: without that each call would get new pages from the
// system, which takes longer than a small query.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "query_pool.h"

namespace hullft {

// The calling thread's own Solver, which only one KeptSolver may use at a time. One that has seen a
// pool whose rows or Gram matrix take more than kKeptBytes is not kept.
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
    const int64_t widest = std::max(in.d * int64_t(sizeof(T)), in.n_rows * int64_t(sizeof(double)));
    largest_ = std::max(largest_, in.n_rows * widest);
    return solver_->solve(options_, in, answer);
  }

 private:
  static constexpr int64_t kKeptBytes = int64_t(1) << 23;

  static std::unique_ptr<Solver>& kept() {
    thread_local std::unique_ptr<Solver> solver;
    return solver;
  }

  Options options_;
  Solver* solver_;
  int64_t largest_ = 0;
};

}  // namespace hullft
