// Selection for every query of a batch, whatever selects.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../host/selection_tensors.h"
#include "batch.h"
#include "query_pool.h"
#include "selection_answer.h"

namespace hullft {

// How one query's answer goes into the output tensors.
class SelectionOutput {
 public:
  using Tensors = SelectionTensors::Tuple;
  using Answer = SelectionAnswer;

  SelectionOutput(const Tensor& pool, int64_t batch, int64_t n_select)
      : n_select_(n_select),
        out_(pool, batch, n_select),
        indices_(integers(out_.indices)),
        counts_(integers(out_.counts)),
        support_size_(integers(out_.support_size)),
        num_iter_(integers(out_.num_iter)),
        weights_(out_.weights),
        residual_(out_.residual),
        gap_(out_.gap) {}

  // False when a value is too large for the outputs' dtype. Threads write disjoint queries.
  bool write(int64_t b, const SelectionAnswer& answer) const {
    for (int64_t i = 0; i < n_select_; ++i) {
      const bool set = i < answer.support_size;
      const int64_t at = b * n_select_ + i;
      indices_[at] = set ? answer.indices[size_t(i)] : -1;
      counts_[at] = set ? answer.counts[size_t(i)] : 0;
      weights_.set(at, set ? answer.weights[size_t(i)] : 0.0);
    }
    support_size_[b] = answer.support_size;
    num_iter_[b] = answer.num_iter;
    const bool residual_fits = residual_.set(b, answer.residual);
    return gap_.set(b, std::max(answer.gap, 0.0)) && residual_fits;  // below 0 only by rounding
  }

  // Result for an empty pool.
  bool write_nothing(int64_t b, double residual, double /*squares*/) const {
    SelectionAnswer nothing;
    nothing.residual = residual;
    return write(b, nothing);
  }

  Tensors tensors() const { return out_.tuple(); }

 private:
  static int64_t* integers(const Tensor& t) { return t.mutable_data_ptr<int64_t>(); }

  int64_t n_select_;
  SelectionTensors out_;
  int64_t *indices_, *counts_, *support_size_, *num_iter_;
  RealOutput weights_, residual_, gap_;
};

// Result for an empty pool: the residual is the norm of the mean target, the variance the sum of
// the targets' squares.
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

// Another with every call, whatever the thread.
inline int64_t next_pool_id() {
  static std::atomic<int64_t> last{0};
  return ++last;
}

// make_solver() builds a thread's solver; its solve(query_pool, answer) is false when an input or a
// product is not finite, output.write(b, answer) when a value is too large for the outputs. Where a
// query failed, its explain(arguments, b, size), if it has one, looks at what it alone knows.
// `work`: see for_each_query.
template <typename T, typename Output, typename MakeSolver>
void select_batch(const SelectionArguments& arguments, const Sizes& sizes, double work,
                  const Output& output, const MakeSolver& make_solver) {
  const Pool<T> pool(arguments);
  const Tensor query = dense_query(arguments);
  const int64_t batch = arguments.batch, d = arguments.dim;
  const T* queries = data<T>(query);
  const int64_t stride = query.stride(0);
  struct Workspace {
    decltype(make_solver()) solver;
    std::vector<const T*> rows;
    typename Output::Answer answer;
    int64_t pool_id;
  };
  const auto failed = for_each_query(
      batch, work, [&] { return Workspace{make_solver(), {}, {}, 0}; },
      [&](Workspace& w, int64_t b) {
        const T* query_b = queries + b * stride;
        const int64_t size = sizes[b];
        if constexpr (requires { output.write_nothing(b, 0.0, 0.0); })
          if (size == 0) return write_nothing(b, query_b, d, arguments.n_targets(), output);
        if (!pool.is_shared() || int64_t(w.rows.size()) != size) {
          pool.rows(b, size, w.rows);
          w.pool_id = next_pool_id();
        }
        const QueryPool<T> in{w.rows.data(), size,   query_b,    d,        b,
                              batch,         stride, batch == 1, w.pool_id};
        return w.solver.solve(in, w.answer) && output.write(b, w.answer);
      });
  if (!failed) return;
  if constexpr (requires { make_solver().explain(arguments, *failed, d); })
    make_solver().explain(arguments, *failed, sizes[*failed]);
  non_finite_error<T>(arguments, sizes[*failed], *failed);
}

}  // namespace hullft
