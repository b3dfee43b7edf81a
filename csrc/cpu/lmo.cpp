// fw_lmo on the CPU: one linear-minimisation step. Schema: csrc/ops.cpp.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>

#include "../core/frank_wolfe.h"
#include "memory.h"
#include "row_products.h"
#include "select_batch.h"

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
  LmoSolver(const T* current, int64_t stride) : current_(current), stride_(stride) {}

  bool solve(const QueryPool<T>& in, LmoAnswer& answer) {
    const T* current = current_ + in.b * stride_;
    products_.begin(in.rows, in.n_rows, in.d, in.share_rows);
    double* r = residual_.reserve(padded(in.d));
    std::fill(r, r + padded(in.d), 0.0);
    for (int64_t i = 0; i < in.d; ++i) r[i] = widen(in.query[i]) - widen(current[i]);
    double* c = c_.reserve(padded(in.n_rows));
    products_.multiply_wide(r, c);
    int64_t s = 0;
    for (int64_t k = 0; k < in.n_rows; ++k) {
      if (!std::isfinite(c[k])) return false;
      if (c[k] > c[s]) s = k;
    }
    answer.vertex = s;
    answer.correlation = c[s];
    return measure(in.rows[s], current, in.d, answer);
  }

  void explain(const SelectionArguments& arguments, int64_t b, int64_t /*size*/) const {
    if (!all_finite(current_ + b * stride_, arguments.dim))
      value_error(arguments.op, "current[", b, "] has NaN or infinity");
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

  const T* current_;
  int64_t stride_;
  RowProducts<T> products_;
  AlignedDoubles residual_, c_;
};

struct LmoOutput {
  using Answer = LmoAnswer;

  bool write(int64_t b, const LmoAnswer& answer) const {
    vertex[b] = answer.vertex;
    gamma.set(b, answer.gamma);
    return correlation.set(b, answer.correlation) && gap.set(b, answer.gap);
  }

  int64_t* vertex;
  RealOutput correlation, gamma, gap;
};

LmoTensors::Tuple fw_lmo(const Tensor& pool, const Tensor& query, const Tensor& current,
                         const std::optional<Tensor>& pool_sizes) {
  const SelectionArguments arguments =
      check_arguments("fw_lmo", "pool", pool, query, "pool_sizes", pool_sizes);
  check_current(arguments, current);
  check_fits(arguments.op, kAnswerBytes * double(arguments.batch), arguments.batch,
             " queries: the answer");
  const Sizes sizes(arguments, 1);
  const LmoTensors out(pool, arguments.batch);
  const LmoOutput output{out.vertex.mutable_data_ptr<int64_t>(), RealOutput(out.correlation),
                         RealOutput(out.gamma), RealOutput(out.gap)};
  const Tensor points = with_dense_rows(current);
  const double work = double(arguments.dim) * sizes.total();
  dispatch_floating(pool.scalar_type(), [&](auto t) {
    using T = decltype(t);
    select_batch<T>(arguments, sizes, work, output,
                    [&] { return LmoSolver<T>(data<T>(points), points.stride(0)); });
  });
  return out.tuple();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CPU, m) { m.impl("fw_lmo", TORCH_BOX(&fw_lmo)); }

}  // namespace hullft
