// integerize on the CPU. Schema: csrc/ops.cpp.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "memory.h"
#include "row_counts.h"
#include "select_batch.h"

namespace hullft {
namespace {

using Counts = std::vector<int64_t>;

template <typename T>
struct IntegerizeSolver {
  bool solve(const QueryPool<T>& in, Counts& answer) {
    read_weights(in.b, in.n_rows);
    answer.resize(size_t(in.n_rows));
    return counts.count(in.rows, in.n_rows, in.query, in.d, in.share_rows, weights.data(), n_select,
                        swap_passes, answer.data());
  }

  void explain(const SelectionArguments& arguments, int64_t b, int64_t size) {
    read_weights(b, size);
    if (!all_finite(weights.data(), size))
      value_error(arguments.op, "weights[", b, "] has NaN or infinity");
    if (!std::isfinite(Integerizer::total(weights.data(), size)))
      value_error(arguments.op, "weights[", b, "] has a sum that float64 does not hold");
  }

  void read_weights(int64_t b, int64_t size) {
    weights.resize(size_t(size));
    for (int64_t i = 0; i < size; ++i) weights[size_t(i)] = all_weights[b * width + i];
  }

  const RealInput& all_weights;
  int64_t width, n_select, swap_passes;
  std::vector<double> weights = {};  // of a query
  RowCounts<T> counts = {};
};

struct CountsOutput {
  using Answer = Counts;

  bool write(int64_t b, const Counts& answer) const {
    int64_t* row = counts + b * width;
    std::fill(std::copy(answer.begin(), answer.end(), row), row + width, int64_t(0));
    return true;
  }

  int64_t* counts;
  int64_t width;
};

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
  const CountsOutput output{counts.mutable_data_ptr<int64_t>(), arguments.width};
  const RealInput all_weights(weights);
  const double work = double(arguments.batch) * kStepsWork +
                      double(arguments.dim) * double(sizes.largest()) / 2 * sizes.total();
  dispatch_floating(support.scalar_type(), [&](auto t) {
    using T = decltype(t);
    select_batch<T>(arguments, sizes, work, output, [&] {
      return IntegerizeSolver<T>{all_weights, arguments.width, n_select, swap_passes};
    });
  });
  return counts;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CPU, m) { m.impl("integerize", TORCH_BOX(&integerize)); }

}  // namespace hullft
