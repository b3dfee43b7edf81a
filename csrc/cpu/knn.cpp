// knn_select on the CPU: the nearest rows by inner product, one step each. Schema: csrc/ops.cpp.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "memory.h"
#include "row_products.h"
#include "select_batch.h"

namespace hullft {
namespace {

template <typename T>
class KnnSolver {
 public:
  explicit KnnSolver(int64_t n_select) : n_select_(n_select) {}

  bool solve(const QueryPool<T>& in, SelectionAnswer& answer) {
    const int64_t n_rows = in.n_rows;
    products_.begin(in.rows, n_rows, in.d, in.share_rows);
    double* b = b_.reserve(padded(n_rows));
    products_.multiply(in.query, b);
    for (int64_t k = 0; k < n_rows; ++k)
      if (!std::isfinite(b[k])) return false;
    nearest(b, n_rows, answer);
    answer.weights.assign(size_t(n_select_), 1.0 / double(n_select_));
    answer.counts.assign(size_t(n_select_), 1);
    answer.support_size = n_select_;
    answer.num_iter = 0;
    return measure(in, answer);
  }

 private:
  void nearest(const double* b, int64_t n_rows, SelectionAnswer& answer) {
    order_.resize(size_t(n_rows));
    std::iota(order_.begin(), order_.end(), int64_t(0));
    std::partial_sort(order_.begin(), order_.begin() + n_select_, order_.end(),
                      [b](int64_t i, int64_t j) { return b[i] != b[j] ? b[i] > b[j] : i < j; });
    answer.indices.assign(order_.begin(), order_.begin() + n_select_);
  }

  // The residual of equal weights, and its Frank-Wolfe gap.
  bool measure(const QueryPool<T>& in, SelectionAnswer& answer) {
    const int64_t d = in.d;
    double* r = residual_.reserve(padded(d));
    std::fill(r, r + padded(d), 0.0);
    for (const int64_t k : answer.indices)
      for (int64_t i = 0; i < d; ++i) r[i] += widen(in.rows[k][i]);
    double squared = 0;
    for (int64_t i = 0; i < d; ++i) {
      r[i] = widen(in.query[i]) - r[i] / double(answer.support_size);
      squared += r[i] * r[i];
    }
    double* c = b_.get();
    products_.multiply_wide(r, c);
    double mean = 0;
    for (const int64_t k : answer.indices) mean += c[k] / double(answer.support_size);
    answer.residual = std::sqrt(squared);
    answer.gap = *std::max_element(c, c + in.n_rows) - mean;
    return std::isfinite(squared) && std::isfinite(answer.gap);
  }

  int64_t n_select_;
  RowProducts<T> products_;
  AlignedDoubles b_, residual_;
  std::vector<int64_t> order_;
};

// A query without candidates selects none; every other has n_select of them.
void check_enough_candidates(const char* op, int64_t n_select, const Sizes& sizes, int64_t batch) {
  for (int64_t b = 0; b < batch; ++b)
    if (sizes[b] > 0 && sizes[b] < n_select)
      value_error(op, "n_select is ", n_select, ", the pool of query ", b, " has ", sizes[b],
                  " rows");
}

SelectionOutput::Tensors knn_select(const Tensor& pool, const Tensor& query, int64_t n_select,
                                    const std::optional<Tensor>& pool_sizes,
                                    const std::optional<Tensor>& candidates) {
  const SelectionArguments arguments =
      check_selection("knn_select", pool, query, pool_sizes, candidates);
  check_range(arguments.op, "n_select", n_select, 1);
  check_enough_rows(arguments, n_select);
  check_memory(arguments, n_select, selection_bytes(arguments, n_select));
  const Sizes sizes(arguments);
  check_enough_candidates(arguments.op, n_select, sizes, arguments.batch);
  // Products with the query and with the residual.
  const double work = 2 * double(arguments.dim) * sizes.total();
  const SelectionOutput output(pool, arguments.batch, n_select);
  dispatch_floating(pool.scalar_type(), [&](auto t) {
    using T = decltype(t);
    select_batch<T>(arguments, sizes, work, output, [&] { return KnnSolver<T>(n_select); });
  });
  return output.tensors();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CPU, m) { m.impl("knn_select", TORCH_BOX(&knn_select)); }

}  // namespace hullft
