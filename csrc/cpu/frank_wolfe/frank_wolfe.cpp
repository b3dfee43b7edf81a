// fw_select on the CPU. Schema: csrc/ops.cpp.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "../memory.h"
#include "../select_batch.h"
#include "../thread_solver.h"
#include "query_solver.h"

namespace hullft {
namespace {

// Bytes of a query's quantized pool and per-candidate arrays.
double screening_bytes(const SelectionArguments& arguments, const Sizes& sizes) {
  constexpr double kCandidateBytes = 64;
  const bool screened = arguments.pool.scalar_type() != ScalarType::Double;
  const double row_bytes = screened ? 2.0 * double(quantized_width(arguments.dim)) : 0;
  return double(sizes.largest()) * (row_bytes + kCandidateBytes);
}

SelectionOutput::Tensors fw_select(const Tensor& pool, const Tensor& query, int64_t n_select,
                                   int64_t max_iter, double tol, double gap_tol,
                                   const std::string& variant, int64_t swap_passes,
                                   const std::optional<int64_t>& max_support,
                                   const std::optional<Tensor>& pool_sizes,
                                   const std::optional<Tensor>& candidates) {
  const SelectionArguments arguments =
      check_selection("fw_select", "fw_select_indexed", pool, query, pool_sizes, candidates);
  const FwOptions options = check_fw_options(arguments.op, n_select, max_iter, tol, gap_tol,
                                             variant, swap_passes, max_support);
  const int64_t batch = arguments.batch;
  const Sizes sizes(arguments);
  check_memory(
      arguments, n_select,
      selection_bytes(arguments, n_select) + at_once(batch) * screening_bytes(arguments, sizes));
  const SelectionOutput output(pool, batch, n_select);
  // A column of the Gram matrix for each atom.
  const double work_a_row = double(arguments.dim) * double(std::min(n_select, sizes.largest()));
  const double work = double(batch) * kStepsWork + work_a_row * sizes.total();
  dispatch_floating(pool.scalar_type(), [&](auto t) {
    using T = decltype(t);
    std::optional<SharedUnitPool<T>> units;
    if (options.variant == Variant::kCorrective) units.emplace(arguments);
    const FwBatchOptions<T> batch_options{options, units ? units->get() : nullptr};
    select_batch<T>(arguments, sizes, work, output, [&] {
      return ThreadSolver<FwQuerySolver<T>, FwBatchOptions<T>>(batch_options);
    });
  });
  return output.tensors();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hullft_ops, CPU, m) { m.impl("fw_select", TORCH_BOX(&fw_select)); }

}  // namespace hullft
