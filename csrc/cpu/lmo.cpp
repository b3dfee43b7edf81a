// fw_lmo on the CPU: one linear-minimisation step. Schema: csrc/ops.cpp.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "../core/frank_wolfe.h"
#include "../host/selection_tensors.h"
#include "batch.h"
#include "memory.h"
#include "row_products.h"

namespace hullft {
namespace {

struct LmoAnswer {
  int64_t vertex;
  double correlation, gamma, gap;
};
constexpr double kAnswerBytes = 20;  // as it is returned, at least: the values in float32

template <typename T>
class LmoSolver {
 public:
  bool solve(const T* const* rows, int64_t n_rows, const T* query, const T* current, int64_t d,
             bool share_rows, LmoAnswer& answer) {
    products_.begin(rows, n_rows, d, share_rows);
    double* r = residual_.reserve(padded(d));
    std::fill(r, r + padded(d), 0.0);
    for (int64_t i = 0; i < d; ++i) r[i] = widen(query[i]) - widen(current[i]);
    double* c = c_.reserve(padded(n_rows));
    products_.multiply_wide(r, c);
    int64_t s = 0;
    for (int64_t k = 0; k < n_rows; ++k) {
      if (!std::isfinite(c[k])) return false;
      if (c[k] > c[s]) s = k;
    }
    answer.vertex = s;
    answer.correlation = c[s];
    return measure(rows[s], current, d, answer);
  }

 private:
  bool measure(const T* x, const T* current, int64_t d, LmoAnswer& answer) {
    const double* r = residual_.get();
    double slope = 0, squared = 0;
    double of_current = 0, xx = 0, cc = 0;  // <r, current>, ||x||^2, ||current||^2
    for (int64_t i = 0; i < d; ++i) {
      const double at = widen(current[i]), direction = widen(x[i]) - at;
      slope += r[i] * direction;
      squared += direction * direction;
      of_current += r[i] * at;
      xx += widen(x[i]) * widen(x[i]), cc += at * at;
    }
    answer.gamma = is_rounding(squared, xx, cc) ? 0.0 : line_search(slope, squared);
    answer.gap = answer.correlation - of_current;
    return std::isfinite(answer.gap) && std::isfinite(answer.gamma) && std::isfinite(xx + cc);
  }

  RowProducts<T> products_;
  AlignedDoubles residual_, c_;
};

template <typename T>
void lmo_batch(const SelectionArguments& arguments, const Sizes& sizes, const Tensor& current,
               const LmoTensors& out) {
  const int64_t batch = arguments.batch, d = arguments.dim;
  const Pool<T> pool(arguments);
  const Tensor query = dense_query(arguments), dense_current = with_dense_rows(current);
  const auto query_at = [&](int64_t b) { return data<T>(query) + b * query.stride(0); };
  const auto current_at = [&](int64_t b) {
    return data<T>(dense_current) + b * dense_current.stride(0);
  };
  struct Workspace {
    LmoSolver<T> solver;
    std::vector<const T*> rows;
  };
  int64_t* vertex = out.vertex.mutable_data_ptr<int64_t>();
  const RealOutput correlation(out.correlation), gamma(out.gamma), gap(out.gap);
  FirstFailure failure;
  for_each_query(
      batch, double(d) * sizes.total(), failure, [] { return Workspace{}; },
      [&](Workspace& w, int64_t b) {
        LmoAnswer answer;
        pool.rows(b, sizes[b], w.rows);
        if (!w.solver.solve(w.rows.data(), sizes[b], query_at(b), current_at(b), d, batch == 1,
                            answer))
          return false;
        vertex[b] = answer.vertex;
        gamma.set(b, answer.gamma);
        return correlation.set(b, answer.correlation) && gap.set(b, answer.gap);
      });
  if (!failure.any()) return;
  const int64_t b = failure.query();
  if (!all_finite(current_at(b), d))
    value_error(arguments.op, "current[", b, "] has NaN or infinity");
  non_finite_error(arguments, pool, sizes[b], query_at(b), b);
}

LmoTensors::Tuple fw_lmo(const Tensor& pool, const Tensor& query, const Tensor& current,
                         const std::optional<Tensor>& pool_sizes) {
  const SelectionArguments arguments =
      check_arguments("fw_lmo", "pool", pool, query, "pool_sizes", pool_sizes);
  check_current(arguments, current);
  check_fits(arguments.op, kAnswerBytes * double(arguments.batch), arguments.batch,
             " queries: the answer");
  const Sizes sizes(arguments, 1);
  const LmoTensors out(pool, arguments.batch);
  dispatch_floating(pool.scalar_type(),
                    [&](auto t) { lmo_batch<decltype(t)>(arguments, sizes, current, out); });
  return out.tuple();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CPU, m) { m.impl("fw_lmo", TORCH_BOX(&fw_lmo)); }

}  // namespace hullft
