// integerize on the CPU. Schema: csrc/ops.cpp.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "../host/empty.h"
#include "batch.h"
#include "integerizer.h"
#include "memory.h"
#include "row_products.h"

namespace hullft {
namespace {

template <typename T>
class IntegerizeSolver {
 public:
  bool solve(const T* const* rows, int64_t m, const T* query, int64_t d, const double* weights,
             int64_t n_select, int64_t swap_passes, bool share_rows, int64_t* counts) {
    products_.begin(rows, m, d, share_rows);
    double* b = b_.reserve(padded(m));
    products_.multiply(query, b);
    double* gram = gram_.reserve(m * m);
    products_.multiply_all(gram);
    double poison = Integerizer::total(weights, m) * 0;
    for (int64_t i = 0; i < m; ++i) poison += (b[i] + weights[i]) * 0;
    for (int64_t i = 0; i < m * m; ++i) poison += gram[i] * 0;
    if (std::isnan(poison)) return false;
    integerizer_.run(gram, b, weights, m, n_select, swap_passes, counts);
    return true;
  }

 private:
  RowProducts<T> products_;
  AlignedDoubles b_, gram_;
  Integerizer integerizer_;
};

template <typename T>
void integerize_batch(const SelectionArguments& arguments, const Sizes& sizes,
                      const Tensor& weights, int64_t n_select, int64_t swap_passes,
                      const Tensor& counts) {
  const int64_t batch = arguments.batch, width = arguments.width, d = arguments.dim;
  const Pool<T> support(arguments);
  const Tensor query = dense_query(arguments);
  const RealInput all_weights(weights);
  const T* queries = data<T>(query);
  const int64_t query_stride = query.stride(0);
  int64_t* out = counts.mutable_data_ptr<int64_t>();
  struct Workspace {
    IntegerizeSolver<T> solver;
    std::vector<const T*> rows;
    std::vector<double> weights;
  };
  const auto read_weights = [&](int64_t b, std::vector<double>& into) {
    into.resize(size_t(sizes[b]));
    for (int64_t i = 0; i < sizes[b]; ++i) into[size_t(i)] = all_weights[b * width + i];
  };
  const double gram_work = double(d) * double(sizes.largest()) / 2 * sizes.total();
  FirstFailure failure;
  for_each_query(
      batch, double(batch) * kStepsWork + gram_work, failure, [] { return Workspace{}; },
      [&](Workspace& w, int64_t b) {
        support.rows(b, sizes[b], w.rows);
        read_weights(b, w.weights);
        std::fill(out + b * width, out + (b + 1) * width, int64_t(0));
        return w.solver.solve(w.rows.data(), sizes[b], queries + b * query_stride, d,
                              w.weights.data(), n_select, swap_passes, batch == 1, out + b * width);
      });
  if (!failure.any()) return;
  const int64_t b = failure.query();
  std::vector<double> of_query;
  read_weights(b, of_query);
  if (!all_finite(of_query.data(), sizes[b]))
    value_error(arguments.op, "weights[", b, "] has NaN or infinity");
  if (!std::isfinite(Integerizer::total(of_query.data(), sizes[b])))
    value_error(arguments.op, "weights[", b, "] has a sum that float64 does not hold");
  non_finite_error(arguments, support, sizes[b], queries + b * query_stride, b);
}

Tensor integerize(const Tensor& support, const Tensor& query, const Tensor& weights,
                  int64_t n_select, int64_t swap_passes,
                  const std::optional<Tensor>& support_sizes) {
  const SelectionArguments arguments =
      check_arguments("integerize", "support", support, query, "support_sizes", support_sizes);
  check_range(arguments.op, "n_select", n_select, 1);
  check_range(arguments.op, "swap_passes", swap_passes, 0);
  check_weights(arguments, weights);
  const Sizes sizes(arguments, 1);
  const std::array<int64_t, 2> out_shape{arguments.batch, arguments.width};
  const double gram_bytes = 8.0 * double(sizes.largest()) * double(sizes.largest());
  check_memory(arguments, n_select,
               8.0 * double(arguments.batch) * double(arguments.width) + bytes_of(weights) +
                   at_once(arguments.batch) * gram_bytes);
  const Tensor counts = empty_beside(support, out_shape, ScalarType::Long);
  dispatch_floating(support.scalar_type(), [&](auto t) {
    integerize_batch<decltype(t)>(arguments, sizes, weights, n_select, swap_passes, counts);
  });
  return counts;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CPU, m) { m.impl("integerize", TORCH_BOX(&integerize)); }

}  // namespace hullft
