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
void integerize_batch(const char* op, const Tensor& support, const Tensor& query,
                      const Tensor& weights, const Sizes& sizes, int64_t d, int64_t n_select,
                      int64_t swap_passes, const Tensor& counts) {
  const int64_t batch = query.size(0), width = weights.size(1);
  const Pool<T> rows_of = pool_of<T>(support);
  const T* queries = data<T>(query);
  const int64_t query_stride = query.stride(0);
  const bool wide_weights = weights.scalar_type() == ScalarType::Double;
  int64_t* out = counts.mutable_data_ptr<int64_t>();
  struct Workspace {
    IntegerizeSolver<T> solver;
    std::vector<const T*> rows;
    std::vector<double> weights;
  };
  const auto read_weights = [&](int64_t b, std::vector<double>& into) {
    into.resize(size_t(sizes[b]));
    for (int64_t i = 0; i < sizes[b]; ++i)
      into[size_t(i)] = wide_weights ? data<double>(weights)[b * width + i]
                                     : double(data<float>(weights)[b * width + i]);
  };
  const double gram_work = double(d) * double(sizes.largest()) / 2 * sizes.total(batch);
  FirstFailure failure;
  for_each_query(
      batch, double(batch) * kStepsWork + gram_work, failure, [] { return Workspace{}; },
      [&](Workspace& w, int64_t b) {
        rows_of.rows(b, sizes[b], w.rows);
        read_weights(b, w.weights);
        std::fill(out + b * width, out + (b + 1) * width, int64_t(0));
        return w.solver.solve(w.rows.data(), sizes[b], queries + b * query_stride, d,
                              w.weights.data(), n_select, swap_passes, batch == 1, out + b * width);
      });
  if (failure.any()) {
    const int64_t b = failure.query();
    std::vector<const T*> rows;
    std::vector<double> of_query;
    rows_of.rows(b, sizes[b], rows);
    read_weights(b, of_query);
    if (!all_finite(of_query.data(), sizes[b]))
      value_error(op, "weights[", b, "] has NaN or infinity");
    if (!std::isfinite(Integerizer::total(of_query.data(), sizes[b])))
      value_error(op, "weights[", b, "] has a sum that float64 does not hold");
    non_finite_error(op, "support", rows, queries + b * query_stride, d, b);
  }
}

Tensor integerize(const Tensor& support, const Tensor& query, const Tensor& weights,
                  int64_t n_select, int64_t swap_passes,
                  const std::optional<Tensor>& support_sizes) {
  constexpr const char* op = "integerize";
  const PoolShape shape = check_pool_query(op, "support", support, query);
  check_range(op, "n_select", n_select, 1);
  check_range(op, "swap_passes", swap_passes, 0);
  check_weights(op, weights, support, shape);
  check_sizes(op, "support_sizes", support_sizes, "support", support, shape.batch);
  // Before any sizes are read: a view of one value may have any number of rows.
  const double bytes = 8.0 * double(shape.batch) * double(shape.candidates) + bytes_of(weights);
  check_memory(op, n_select, shape.batch, shape.candidates, bytes);
  const Sizes sizes(op, "support_sizes", support_sizes, shape.candidates, shape.batch, 1);
  const double gram_bytes = 8.0 * double(sizes.largest()) * double(sizes.largest());
  check_memory(op, n_select, shape.batch, shape.candidates,
               bytes + at_once(shape.batch) * gram_bytes);
  const Tensor dense_support = with_dense_rows(support), dense_query = with_dense_rows(query);
  const Tensor dense_weights = torch::stable::contiguous(weights);
  const std::array<int64_t, 2> out_shape{shape.batch, shape.candidates};
  const Tensor counts = empty_beside(support, out_shape, ScalarType::Long);
  dispatch_floating(support.scalar_type(), [&](auto t) {
    integerize_batch<decltype(t)>(op, dense_support, dense_query, dense_weights, sizes, shape.dim,
                                  n_select, swap_passes, counts);
  });
  return counts;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CPU, m) { m.impl("integerize", TORCH_BOX(&integerize)); }

}  // namespace hullft
